package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// certificateFiles writes a certificate for names and its key, and returns the paths.
func certificateFiles(t *testing.T, folder string, names ...string) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), DNSNames: names,
		Subject: pkix.Name{CommonName: names[0]}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	cert, key = filepath.Join(folder, "cert.pem"), filepath.Join(folder, "key.pem")
	writePEM(t, cert, "CERTIFICATE", der)
	writePEM(t, key, "PRIVATE KEY", pkcs8(t, private))
	return cert, key
}

func pkcs8(t *testing.T, key any) []byte {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func writePEM(t *testing.T, path, kind string, der []byte) {
	t.Helper()
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}

// trusting returns a client that trusts the certificates of a PEM text, and reaches
// every host at the address.
func trusting(t *testing.T, address string, roots []byte) *http.Client {
	t.Helper()
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(roots) {
		t.Fatalf("no certificate: %q", roots)
	}
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, ForceAttemptHTTP2: true,
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, address)
		}}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: 10 * time.Second}
}

// served returns for whom the certificate of the server at an address is.
func served(t *testing.T, address string) string {
	t.Helper()
	conn, err := tls.Dial("tcp", address, &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	return conn.ConnectionState().PeerCertificates[0].Subject.CommonName
}

func addressOf(srv *process) string {
	_, port, _ := net.SplitHostPort(strings.TrimPrefix(srv.url, "https://"))
	return "127.0.0.1:" + port
}

func TestCertificateFilesAreServedAndReadAgain(t *testing.T) {
	folder := t.TempDir()
	cert, key := certificateFiles(t, folder, "first.example.org")
	file := quick(t, fmt.Sprintf("tls: {cert: %s, key: %s}\n", cert, key))
	srv := serving(t, nil, "-c", file, "--port", "0")
	if !strings.HasPrefix(srv.url, "https://localhost:") {
		t.Errorf("it says that it listens on %s", srv.url)
	}
	roots, err := os.ReadFile(cert)
	if err != nil {
		t.Fatal(err)
	}
	res, err := trusting(t, addressOf(srv), roots).Get("https://first.example.org/health")
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != 200 || res.ProtoMajor != 2 {
		t.Errorf("answered %s by %s", res.Status, res.Proto)
	}
	port := srv.url[strings.LastIndexByte(srv.url, ':')+1:]
	run(t, nil, "", "healthcheck", "-c", file, "--port", port).wants(t, 0, "ok\n", "")
	if r := run(t, nil, "", "healthcheck", "--url", srv.url); r.status != 1 || !strings.Contains(r.stderr, "certificate") {
		t.Errorf("a healthcheck of another machine trusts any certificate: %+v", r)
	}

	certificateFiles(t, folder, "second.example.org")
	until(t, "the new certificate is served", func() bool { return served(t, addressOf(srv)) == "second.example.org" })

	if err := os.WriteFile(key, []byte("garbage"), 0o600); err != nil {
		t.Fatal(err)
	}
	until(t, "that the key can't be used is logged", func() bool {
		return served(t, addressOf(srv)) == "second.example.org" && strings.Contains(srv.stderr.String(), "the one before is served on")
	})
	// A server that runs is healthy, whatever its files have become.
	run(t, nil, "", "healthcheck", "-c", file, "--port", port).wants(t, 0, "ok\n", "")
	if r := run(t, nil, "", "serve", "-c", file, "--port", "0"); r.status != 2 || !strings.Contains(r.stderr, file+":2: tls.key: "+key+" is not the key of "+cert) {
		t.Errorf("a start with such files: %+v", r)
	}
	other := quick(t, fmt.Sprintf("tls: {cert: %s, key: %s}\n", key, cert))
	if r := run(t, nil, "", "serve", "-c", other, "--port", "0"); r.status != 2 || !strings.Contains(r.stderr, other+":2: tls.cert: "+key+" holds no certificate; give a PEM file that does") {
		t.Errorf("a start with the files swapped: %+v", r)
	}
	srv.Process.Signal(syscall.SIGHUP)
	until(t, "the reload is refused", func() bool { return strings.Contains(srv.stderr.String(), "not reloaded") })

	certificateFiles(t, folder, "third.example.org")
	srv.Process.Signal(syscall.SIGHUP)
	until(t, "SIGHUP reads the files", func() bool { return strings.Contains(srv.stderr.String(), "third.example.org") })
	if name := served(t, addressOf(srv)); name != "third.example.org" {
		t.Errorf("it serves %s", name)
	}
}

func TestOperationsStayInTheClear(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	second := l.Addr().String()
	l.Close()
	cert, key := certificateFiles(t, t.TempDir(), "a.example.org")
	file := quick(t, fmt.Sprintf("operations: %s\ntls: {cert: %s, key: %s}\n", second, cert, key))
	serving(t, nil, "-c", file, "--port", "0")
	if res, _ := get(t, "http://"+second+"/metrics"); res.StatusCode != 200 {
		t.Errorf("answered %s", res.Status)
	}
	run(t, nil, "", "healthcheck", "-c", file).wants(t, 0, "ok\n", "")
}

// A nameServer says by TCP that every host is this machine.
func nameServer(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				defer conn.Close()
				conn.SetDeadline(time.Now().Add(10 * time.Second))
				answerNames(conn)
			})
		}
	})
	t.Cleanup(func() { l.Close(); all.Wait() })
	return l.Addr().String()
}

// answerNames answers questions, each behind its length in two bytes (RFC 1035, 4.2.2).
func answerNames(conn net.Conn) {
	for {
		length := make([]byte, 2)
		if _, err := io.ReadFull(conn, length); err != nil {
			return
		}
		b := make([]byte, binary.BigEndian.Uint16(length))
		if _, err := io.ReadFull(conn, b); err != nil {
			return
		}
		// A header of 12 bytes, the name, 0, type and class (RFC 1035, 4.1).
		end := 12
		for end < len(b) && b[end] != 0 {
			end += int(b[end]) + 1
		}
		if end += 5; end > len(b) {
			return
		}
		answer := append([]byte{b[0], b[1], 0x81, 0x80, 0, 1, 0, 0, 0, 0, 0, 0}, b[12:end]...)
		if b[end-3] == 1 { // A
			answer[7] = 1
			answer = append(answer, 0xC0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 127, 0, 0, 1)
		}
		if _, err := conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(answer))), answer...)); err != nil {
			return
		}
	}
}

// freePorts returns ports that nobody listens on.
func freePorts(t *testing.T, n int) []int {
	t.Helper()
	var ports []int
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	return ports
}

// An acmeServer is Let's Encrypt's own for tests, which asks port for proofs.
func acmeServer(t *testing.T, port int) (p *process, directory, authority string, root func() []byte) {
	t.Helper()
	folder := t.TempDir()
	program := filepath.Join(folder, "pebble")
	build := exec.Command("go", "build", "-modfile=tools.mod", "-o", program, "github.com/letsencrypt/pebble/v2/cmd/pebble")
	build.Dir = "../.."
	if said, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, said)
	}
	cert, key := certificateFiles(t, folder, "localhost")
	ports := freePorts(t, 2)
	settings, err := json.Marshal(map[string]any{"pebble": map[string]any{
		"listenAddress": fmt.Sprintf("127.0.0.1:%d", ports[0]), "managementListenAddress": fmt.Sprintf("127.0.0.1:%d", ports[1]),
		"certificate": cert, "privateKey": key, "httpPort": 1, "tlsPort": port,
		"retryAfter": map[string]any{"authz": 1, "order": 1},
		"profiles":   map[string]any{"default": map[string]any{"description": "d", "validityPeriod": 7776000}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	p = launch(t, []string{"PEBBLE_VA_NOSLEEP=1", "PEBBLE_WFE_NONCEREJECT=0"}, program,
		"-config", write(t, "pebble.json", string(settings)), "-dnsserver", nameServer(t))
	roots, err := os.ReadFile(cert)
	if err != nil {
		t.Fatal(err)
	}
	directory = fmt.Sprintf("https://localhost:%d/dir", ports[0])
	own := trusting(t, fmt.Sprintf("127.0.0.1:%d", ports[0]), roots)
	until(t, "the ACME server answers", func() bool {
		res, err := own.Get(directory)
		if err != nil {
			return false
		}
		res.Body.Close()
		return res.StatusCode == 200
	})
	return p, directory, cert, func() []byte {
		res, err := trusting(t, fmt.Sprintf("127.0.0.1:%d", ports[1]), roots).Get("https://localhost/roots/0")
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
}

func TestCertificatesAreGotByACMEAndKept(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("SSL_CERT_FILE, by which the program trusts the ACME server, is Linux's")
	}
	port := freePorts(t, 1)[0]
	acme, directory, authority, root := acmeServer(t, port)
	cache := filepath.Join(t.TempDir(), "a", "cache")
	file := quick(t, fmt.Sprintf("tls:\n  acme:\n    domains: [Events.example.org]\n    email: ops@example.org\n    cache: %s\n    directory: %s\n", cache, directory))
	env := []string{"SSL_CERT_FILE=" + authority}
	srv := serving(t, env, "-c", file, "--port", fmt.Sprint(port))
	client := trusting(t, addressOf(srv), root())
	client.Timeout = time.Minute
	res, err := client.Get("https://events.example.org/health")
	if err != nil {
		for len(acme.lines) > 0 {
			t.Log(<-acme.lines)
		}
		t.Fatal(err)
	}
	res.Body.Close()
	serial := res.TLS.PeerCertificates[0].SerialNumber
	if res.StatusCode != 200 {
		t.Errorf("answered %s", res.Status)
	}
	run(t, nil, "", "healthcheck", "-c", file, "--port", fmt.Sprint(port)).wants(t, 0, "ok\n", "")
	if _, err := client.Get("https://other.example.org/health"); err == nil {
		t.Error("it has a certificate for a host that is not configured")
	}
	if log := srv.stderr.String(); strings.Contains(log, "WARN") {
		t.Errorf("it logged: %s", log)
	}
	if info, err := os.Stat(cache); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the cache: %v, %v", info.Mode(), err)
	}

	srv.Process.Signal(os.Interrupt)
	if status := srv.status(t); status != 0 {
		t.Errorf("ended with %d", status)
	}
	acme.Process.Kill()
	<-acme.ended
	again := serving(t, env, "-c", file, "--port", "0")
	client = trusting(t, addressOf(again), rootOf(res.TLS))
	if res, err = client.Get("https://events.example.org/health"); err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.TLS.PeerCertificates[0].SerialNumber.Cmp(serial) != 0 {
		t.Error("it is another certificate than before")
	}
}

// rootOf returns the root that a connection's certificate was checked by.
func rootOf(state *tls.ConnectionState) []byte {
	chain := state.VerifiedChains[0]
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: chain[len(chain)-1].Raw})
}

func TestACertificateThatCantBeHadIsLogged(t *testing.T) {
	file := quick(t, fmt.Sprintf("tls:\n  acme:\n    domains: events.example.org\n    cache: %s\n    directory: https://127.0.0.1:1/\n", t.TempDir()))
	srv := serving(t, nil, "-c", file, "--port", "0")
	until(t, "it is logged", func() bool {
		return strings.Contains(srv.stderr.String(), `level=WARN msg="a certificate can't be had" name=events.example.org`)
	})
}

func TestACacheThatCantBeWrittenIsToldAtTheStart(t *testing.T) {
	file := quick(t, fmt.Sprintf("tls:\n  acme:\n    domains: events.example.org\n    cache: %s/below\n", write(t, "file", "")))
	r := run(t, nil, "", "serve", "-c", file, "--port", "0")
	if r.status != 2 || !strings.Contains(r.stderr, file+":5: tls.acme.cache: ") || !strings.Contains(r.stderr, "give a folder that this user may write to") {
		t.Errorf("%+v", r)
	}
}

func TestWhereCertificatesAreKept(t *testing.T) {
	t.Setenv("STATE_DIRECTORY", "/state:/other")
	if folder, err := cacheFolder(); folder != "/state/acme" || err != nil {
		t.Errorf("with STATE_DIRECTORY: %q, %v", folder, err)
	}
	t.Setenv("STATE_DIRECTORY", "")
	user, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	if folder, err := cacheFolder(); folder != filepath.Join(user, "eventsource", "acme") || err != nil {
		t.Errorf("of a user: %q, %v", folder, err)
	}
}
