// Package brokertest finds the brokers that tests need, starts brokers of a test's own,
// and cuts connections to them.
package brokertest

import (
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/railsmechanic/eventsource/internal/check"
)

// starting is how long a broker may take to answer.
const starting = time.Minute

// RabbitMQ returns the URL of the one that tests share, or else skips the test.
func RabbitMQ(t testing.TB) string {
	return shared(t, "EVENTSOURCE_TEST_AMQP", "amqp://guest:guest@127.0.0.1:5672")
}

// Redis returns the URL of the one that tests share, or else skips the test.
func Redis(t testing.TB) string {
	return shared(t, "EVENTSOURCE_TEST_REDIS", "redis://127.0.0.1:6379")
}

// NATS returns the URL of the one that tests share, or else skips the test.
func NATS(t testing.TB) string {
	return shared(t, "EVENTSOURCE_TEST_NATS", "nats://127.0.0.1:4222")
}

func shared(t testing.TB, variable, standard string) string {
	t.Helper()
	where := os.Getenv(variable)
	if where == "" {
		where = standard
	}
	u, err := url.Parse(where)
	if err != nil {
		t.Fatalf("%s is no URL", variable)
	}
	c, err := net.DialTimeout("tcp", u.Host, 5*time.Second)
	if err != nil {
		check.Skip(t, "no broker answers at "+u.Host+"; another one can be named in "+variable)
	}
	c.Close()
	return where
}

// A Broker is one of a test's own, on ports and in a folder of its own. It ends with the
// test.
type Broker struct {
	// URL is where it is, also after a restart.
	URL string
	// Address is its host and port.
	Address string

	t   testing.TB
	log string
	cmd func() *exec.Cmd
	run *exec.Cmd
}

// OwnRedis starts a Redis that writes all that it answered to its file, or else skips the
// test.
func OwnRedis(t testing.TB, options ...string) *Broker {
	t.Helper()
	program := find(t, "redis-server")
	dir, address := t.TempDir(), Free(t)
	_, port, _ := net.SplitHostPort(address)
	return start(t, &Broker{URL: "redis://" + address, Address: address, log: filepath.Join(dir, "log"), cmd: func() *exec.Cmd {
		return exec.Command(program, append([]string{"--port", port, "--bind", "127.0.0.1", "--dir", dir, "--save", "",
			"--appendonly", "yes", "--appendfsync", "always"}, options...)...)
	}})
}

// OwnNATS starts a NATS with JetStream, or else skips the test.
func OwnNATS(t testing.TB, options ...string) *Broker {
	t.Helper()
	program := find(t, "nats-server")
	dir, address := t.TempDir(), Free(t)
	_, port, _ := net.SplitHostPort(address)
	return start(t, &Broker{URL: "nats://" + address, Address: address, log: filepath.Join(dir, "log"), cmd: func() *exec.Cmd {
		return exec.Command(program, append([]string{"-a", "127.0.0.1", "-p", port, "-js", "-sd", dir}, options...)...)
	}})
}

// OwnRabbitMQ starts a RabbitMQ without plugins, or else skips the test. It runs as
// whoever runs the test, root or not, and takes some seconds. One that is killed within
// three minutes of the declaration of a quorum queue or a stream has forgotten where that
// is, unless it was stopped in between.
func OwnRabbitMQ(t testing.TB) *Broker {
	t.Helper()
	// What stands on the path is, with Debian, a script for root and rabbitmq alone.
	program := find(t, "/usr/lib/rabbitmq/bin/rabbitmq-server", "rabbitmq-server")
	epmd := find(t, "epmd")
	dir, address, mapper := t.TempDir(), Free(t), Free(t)
	_, port, _ := net.SplitHostPort(address)
	_, mapperPort, _ := net.SplitHostPort(mapper)
	_, distribution, _ := net.SplitHostPort(Free(t))
	for name, content := range map[string]string{"plugins": "[].\n", "rabbitmq.conf": "loopback_users = none\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	env := append(withoutRabbitMQ(os.Environ()),
		"HOME="+dir, "ERL_EPMD_PORT="+mapperPort, "ERL_EPMD_ADDRESS=127.0.0.1", "ERL_FLAGS=-kernel inet_dist_use_interface {127,0,0,1}",
		"RABBITMQ_NODENAME=test"+port+"@localhost", "RABBITMQ_NODE_PORT="+port, "RABBITMQ_NODE_IP_ADDRESS=127.0.0.1",
		"RABBITMQ_DIST_PORT="+distribution, "RABBITMQ_MNESIA_BASE="+filepath.Join(dir, "mnesia"), "RABBITMQ_LOG_BASE="+filepath.Join(dir, "logs"),
		"RABBITMQ_PID_FILE="+filepath.Join(dir, "pid"), "RABBITMQ_ENABLED_PLUGINS_FILE="+filepath.Join(dir, "plugins"),
		"RABBITMQ_CONFIG_FILE="+filepath.Join(dir, "rabbitmq"), "RABBITMQ_CONF_ENV_FILE="+filepath.Join(dir, "none"))
	// The node would leave a port mapper behind, of which one on the standard port may
	// belong to another node.
	start(t, &Broker{Address: mapper, log: filepath.Join(dir, "epmd.log"), cmd: func() *exec.Cmd {
		cmd := exec.Command(epmd, "-port", mapperPort, "-address", "127.0.0.1")
		cmd.Env = env
		return cmd
	}})
	return start(t, &Broker{URL: "amqp://guest:guest@" + address, Address: address, log: filepath.Join(dir, "log"), cmd: func() *exec.Cmd {
		cmd := exec.Command(program)
		cmd.Env = env
		return cmd
	}})
}

// withoutRabbitMQ returns variables without those that are RabbitMQ's or Erlang's.
func withoutRabbitMQ(env []string) []string {
	return slices.DeleteFunc(env, func(v string) bool {
		return strings.HasPrefix(v, "RABBITMQ_") || strings.HasPrefix(v, "ERL_") || strings.HasPrefix(v, "HOME=") || strings.HasPrefix(v, "NOTIFY_SOCKET=")
	})
}

// find returns the first of some programs that there is, or else skips the test.
func find(t testing.TB, programs ...string) string {
	t.Helper()
	for _, p := range programs {
		if path, err := exec.LookPath(p); err == nil {
			return path
		}
		if path, err := exec.LookPath("/usr/sbin/" + p); err == nil {
			return path
		}
	}
	check.Skip(t, "there is no "+programs[len(programs)-1]+" to start one of the test's own")
	return ""
}

// Free returns an address of the loopback that nobody listens on.
func Free(t testing.TB) string {
	t.Helper()
	l := listen(t)
	defer l.Close()
	return l.Addr().String()
}

// start starts a broker, which ends with the test.
func start(t testing.TB, b *Broker) *Broker {
	t.Helper()
	b.t = t
	t.Cleanup(b.Kill)
	b.Start()
	return b
}

// Start starts the broker again after Kill, and returns when it answers.
func (b *Broker) Start() {
	b.t.Helper()
	log, err := os.OpenFile(b.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		b.t.Fatal(err)
	}
	defer log.Close()
	run := b.cmd()
	run.Stdout, run.Stderr = log, log
	apart(run)
	if err := run.Start(); err != nil {
		b.t.Fatal(err)
	}
	b.run = run
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(starting); time.Now().Before(deadline); <-tick.C {
		if c, err := net.Dial("tcp", b.Address); err == nil {
			c.Close()
			return
		}
	}
	said, _ := os.ReadFile(b.log)
	b.t.Fatalf("the broker did not start:\n%s", said)
}

// Kill ends the broker as a loss of power would, if it runs.
func (b *Broker) Kill() {
	if b.run == nil {
		return
	}
	kill(b.run)
	b.run.Wait()
	b.run = nil
}

// Stop ends the broker as an operator would, if it runs.
func (b *Broker) Stop() {
	b.t.Helper()
	if b.run == nil {
		return
	}
	b.run.Process.Signal(syscall.SIGTERM)
	ended := make(chan error, 1)
	go func() { ended <- b.run.Wait() }()
	timeout := time.NewTimer(starting)
	defer timeout.Stop()
	select {
	case <-ended:
	case <-timeout.C:
		b.t.Error("the broker did not end")
		kill(b.run)
		<-ended
	}
	kill(b.run) // what it had started
	b.run = nil
}

// Ctl has rabbitmqctl do something with a RabbitMQ, or else fails the test.
func (b *Broker) Ctl(args ...string) {
	b.t.Helper()
	ctl := exec.Command(find(b.t, "/usr/lib/rabbitmq/bin/rabbitmqctl", "rabbitmqctl"), args...)
	ctl.Env = b.cmd().Env
	if said, err := ctl.CombinedOutput(); err != nil {
		b.t.Fatalf("%v: %v: %s", args, err, said)
	}
}

// Pid returns the broker's process, such as to stop and to continue it.
func (b *Broker) Pid() int { return b.run.Process.Pid }
