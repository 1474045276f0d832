//go:build !linux

// Command bench measures the server against a floor. See main_linux.go.
package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Fprintln(os.Stderr, "bench: the load table needs Linux")
	os.Exit(1)
}
