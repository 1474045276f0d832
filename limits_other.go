//go:build !linux

package eventsource

// descriptorLimit returns how many consumers may be connected where the system
// is not asked for its limit.
func descriptorLimit() int { return 10_000 + 64 }
