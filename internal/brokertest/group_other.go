//go:build !unix

package brokertest

import "os/exec"

func apart(*exec.Cmd) {}

func kill(cmd *exec.Cmd) { cmd.Process.Kill() }
