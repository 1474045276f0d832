//go:build !unix

package eventsource_test

func smallWindow(uintptr) {}
