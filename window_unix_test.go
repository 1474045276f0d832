//go:build unix

package eventsource_test

import "syscall"

// smallWindow keeps a socket's receive buffer as small as may be.
func smallWindow(fd uintptr) {
	syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, 4096)
}
