package eventsource

import "golang.org/x/sys/unix"

// descriptorLimit returns how many descriptors the process may open. The Go
// runtime has raised it to the hard limit.
func descriptorLimit() int {
	var l unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &l) != nil || l.Cur > 1<<30 {
		return 1 << 30
	}
	return int(l.Cur)
}
