//go:build unix

package main

import (
	"math"
	"syscall"
)

// descriptorLimit returns how many descriptors the process may have open. Go
// has raised it as far as it may go.
func descriptorLimit() int {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return 0
	}
	return int(min(uint64(limit.Cur), math.MaxInt))
}
