package eventsource

import (
	"net/http"
	"net/netip"
	"slices"
	"strings"
)

// address returns where a request comes from: the other end of the connection, or,
// where that is a trusted proxy, the last address that none of these has added to
// X-Forwarded-For, or else to Forwarded (RFC 7239). What a trusted proxy has written
// and can't be read, such as "unknown", counts for that proxy: what stands before it
// may be anybody's word. Of IPv6 it is the /64, which one site has whole. The zero
// address is that of a connection which has none.
func (p *policy) address(r *http.Request) netip.Addr {
	address := peerAddress(r.RemoteAddr)
	if !p.trusts(address) {
		return counted64(address)
	}
	for _, hop := range slices.Backward(forwardedFor(r.Header)) {
		next := hostAddress(hop)
		if !next.IsValid() {
			break
		}
		if address = next; !p.trusts(address) {
			break
		}
	}
	return counted64(address)
}

func (p *policy) trusts(a netip.Addr) bool {
	return a.IsValid() && slices.ContainsFunc(p.proxies, func(t netip.Prefix) bool { return t.Contains(a) })
}

// peerAddress reads the address of a connection's other end. Who comes over a Unix
// socket, which net names "@", "" or by its path, is on this machine.
func peerAddress(s string) netip.Addr {
	if s == "" || s[0] == '@' || s[0] == '/' {
		return netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	return hostAddress(s)
}

// hostAddress reads an address with a port or without, IPv6 in brackets or without.
// The port may be any text (RFC 7239, 6.3).
func hostAddress(s string) netip.Addr {
	if bracketed, ok := strings.CutPrefix(s, "["); ok {
		host, port, closed := strings.Cut(bracketed, "]")
		if !closed || port != "" && port[0] != ':' {
			return netip.Addr{}
		}
		s = host
	} else if strings.Count(s, ":") == 1 {
		s, _, _ = strings.Cut(s, ":")
	}
	a, err := netip.ParseAddr(s)
	if err != nil {
		return netip.Addr{}
	}
	return a.Unmap().WithZone("")
}

// counted64 returns what an address is counted as.
func counted64(a netip.Addr) netip.Addr {
	if a.Is6() {
		p, err := a.Prefix(64)
		if err == nil {
			return p.Addr()
		}
	}
	return a
}

// forwardedFor returns the addresses that proxies say a request came by, the
// nearest last.
func forwardedFor(h http.Header) []string {
	var hops []string
	for _, v := range h["X-Forwarded-For"] {
		for hop := range strings.SplitSeq(v, ",") {
			hops = append(hops, strings.TrimSpace(hop))
		}
	}
	if hops != nil {
		return hops
	}
	for _, line := range h["Forwarded"] {
		read, ok := readForwarded(line)
		if !ok {
			read = []string{""}
		}
		hops = append(hops, read...)
	}
	return hops
}

// readForwarded returns the "for" of each element of a line of Forwarded (RFC 7239,
// 4), "" where it has none; false when anything in the line is not well formed. A
// client that leaves a quote open, or has a comma in the Host that a proxy quotes,
// must not turn a part of what the proxy adds into an element of its own.
func readForwarded(line string) (hops []string, ok bool) {
	hop, given := "", false
	for {
		line = strings.TrimLeft(line, " \t")
		if line != "" && line[0] != ';' && line[0] != ',' {
			name, rest, _ := strings.Cut(line, "=")
			value, rest, ok := forwardedValue(rest)
			if !ok || !validToken(name) {
				return nil, false
			}
			if strings.EqualFold(name, "for") {
				if given {
					return nil, false
				}
				hop, given = value, true
			}
			line = strings.TrimLeft(rest, " \t")
		}
		switch {
		case line == "":
			return append(hops, hop), true
		case line[0] == ',':
			hops = append(hops, hop)
			hop, given = "", false
		case line[0] != ';':
			return nil, false
		}
		line = line[1:]
	}
}

// forwardedValue reads a value at the beginning of s, a quoted one (RFC 9110, 5.6.4)
// or not, and returns what follows it. Some proxies don't quote IPv6.
func forwardedValue(s string) (value, rest string, ok bool) {
	quoted, isQuoted := strings.CutPrefix(s, `"`)
	if !isQuoted {
		end := strings.IndexAny(s, ";, \t")
		if end < 0 {
			end = len(s)
		}
		return s[:end], s[end:], end > 0 && !strings.ContainsAny(s[:end], `"\`)
	}
	var b strings.Builder
	for i := 0; i < len(quoted); i++ {
		switch c := quoted[i]; {
		case c == '"':
			return b.String(), quoted[i+1:], true
		case c == '\\' && i+1 < len(quoted):
			i++
		}
		b.WriteByte(quoted[i])
	}
	return "", "", false
}
