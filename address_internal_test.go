package eventsource

import (
	"net/http"
	"net/http/httptest"
	"net/netip"
	"testing"
)

// proxiesAt are proxies to trust.
func proxiesAt(list ...string) []netip.Prefix {
	var p []netip.Prefix
	for _, s := range list {
		p = append(p, netip.MustParsePrefix(s))
	}
	return p
}

func TestTheAddressThatCountsIsTheNearestThatIsNotTrusted(t *testing.T) {
	trusted := proxiesAt("127.0.0.0/8", "::1/128", "10.0.0.0/8", "2001:db8:aaaa::/48", "fe80::/10")
	xff := func(lines ...string) http.Header { return http.Header{"X-Forwarded-For": lines} }
	forwarded := func(lines ...string) http.Header { return http.Header{"Forwarded": lines} }
	const proxy, ghost = "127.0.0.1:4711", "203.0.113.66"
	for name, tc := range map[string]struct {
		peer   string
		header http.Header
		want   string // "": the zero address
	}{
		// Who is not trusted speaks for itself only.
		"direct":                         {"192.0.2.1:4711", nil, "192.0.2.1"},
		"direct, forged":                 {"192.0.2.1:4711", xff(ghost), "192.0.2.1"},
		"direct, forged Forwarded":       {"192.0.2.1:4711", forwarded("for=" + ghost), "192.0.2.1"},
		"direct, forged as trusted":      {"192.0.2.1:4711", xff("127.0.0.1"), "192.0.2.1"},
		"direct, without a port":         {"192.0.2.1", xff(ghost), "192.0.2.1"},
		"direct, IPv6":                   {"[2001:db8:1:2:3:4:5:6]:4711", xff(ghost), "2001:db8:1:2::"},
		"direct, mapped":                 {"[::ffff:192.0.2.1]:4711", xff(ghost), "192.0.2.1"},
		"direct, with a zone":            {"[2001:db8:1:2::3%eth0]:4711", nil, "2001:db8:1:2::"},
		"no address at all":              {"pipe", xff(ghost), ""},
		"half an address":                {"192.0.2.1.", xff(ghost), ""},
		"a trusted peer that adds none":  {proxy, nil, "127.0.0.1"},
		"a trusted mapped peer":          {"[::ffff:10.1.2.3]:4711", xff("192.0.2.1"), "192.0.2.1"},
		"a trusted IPv6 peer":            {"[::1]:4711", xff("192.0.2.1"), "192.0.2.1"},
		"a trusted peer with a zone":     {"[fe80::1%eth0]:4711", xff("192.0.2.1"), "192.0.2.1"},
		"a trusted peer without a port":  {"10.0.0.1", xff("192.0.2.1"), "192.0.2.1"},
		"a Unix socket, unnamed":         {"@", xff("192.0.2.1"), "192.0.2.1"},
		"a Unix socket, unnamed, on BSD": {"", xff("192.0.2.1"), "192.0.2.1"},
		"a Unix socket, abstract":        {"@nginx", xff("192.0.2.1"), "192.0.2.1"},
		"a Unix socket, named":           {"/run/nginx.sock", xff("192.0.2.1"), "192.0.2.1"},
		"a Unix socket, nothing added":   {"@", nil, "127.0.0.1"},

		// What stands left of the first that is not trusted may be forged.
		"one hop":                       {proxy, xff("192.0.2.1"), "192.0.2.1"},
		"forged before it":              {proxy, xff(ghost + ", 192.0.2.1"), "192.0.2.1"},
		"forged in a line before it":    {proxy, xff(ghost, "192.0.2.1"), "192.0.2.1"},
		"forged as trusted before it":   {proxy, xff("10.0.0.1, 192.0.2.1"), "192.0.2.1"},
		"two proxies":                   {proxy, xff(ghost + ", 192.0.2.1, 10.0.0.1"), "192.0.2.1"},
		"two proxies, a line each":      {proxy, xff(ghost, "192.0.2.1", "10.0.0.1"), "192.0.2.1"},
		"two proxies, lines and lists":  {proxy, xff(ghost+",192.0.2.1", " 10.0.0.1 , 10.0.0.2 "), "192.0.2.1"},
		"all are trusted":               {proxy, xff("10.0.0.3, 10.0.0.2, 10.0.0.1"), "10.0.0.3"},
		"spaces and tabs":               {proxy, xff("\t" + ghost + " ,\t 192.0.2.1  "), "192.0.2.1"},
		"a port":                        {proxy, xff("192.0.2.1:50000"), "192.0.2.1"},
		"a port of a trusted hop":       {proxy, xff("192.0.2.1, 10.0.0.1:443"), "192.0.2.1"},
		"IPv6":                          {proxy, xff("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::"},
		"IPv6 in brackets":              {proxy, xff("[2001:db8:1:2:3:4:5:6]"), "2001:db8:1:2::"},
		"IPv6 in brackets, with a port": {proxy, xff("[2001:db8:1:2::6]:443"), "2001:db8:1:2::"},
		"IPv6 with a zone":              {proxy, xff("fe80::1%eth0, 2001:db8:1:2::6%eth0"), "2001:db8:1:2::"},
		"IPv6, trusted by all its bits": {proxy, xff("192.0.2.1, 2001:db8:aaaa:1::5"), "192.0.2.1"},
		"IPv4-mapped":                   {proxy, xff("::ffff:192.0.2.1"), "192.0.2.1"},
		"IPv4-mapped, a trusted hop":    {proxy, xff("192.0.2.1, [::ffff:10.0.0.1]:80"), "192.0.2.1"},

		// What a trusted proxy wrote and can't be read counts for it.
		"unknown":                      {proxy, xff(ghost + ", unknown"), "127.0.0.1"},
		"unknown, from the one behind": {proxy, xff(ghost + ", unknown, 10.0.0.1"), "10.0.0.1"},
		"garbage":                      {proxy, xff(ghost + ", <script>"), "127.0.0.1"},
		"garbage that was sent":        {proxy, xff("<script>, 192.0.2.1"), "192.0.2.1"},
		"a name":                       {proxy, xff(ghost + ", client.example"), "127.0.0.1"},
		"nginx on a Unix socket":       {proxy, xff(ghost + ", unix:"), "127.0.0.1"},
		"leading zeros":                {proxy, xff(ghost + ", 192.000.002.001"), "127.0.0.1"},
		"a bracket left open":          {proxy, xff(ghost + ", [2001:db8::1"), "127.0.0.1"},
		"text after a bracket":         {proxy, xff(ghost + ", [2001:db8::1]x"), "127.0.0.1"},
		"nothing added":                {proxy, xff(ghost + ", "), "127.0.0.1"},
		"an empty line":                {proxy, xff(""), "127.0.0.1"},
		"an empty line after one":      {proxy, xff(ghost, ""), "127.0.0.1"},

		// RFC 7239, 4 to 7.
		"Forwarded":                     {proxy, forwarded("for=192.0.2.1"), "192.0.2.1"},
		"Forwarded, mixed case":         {proxy, forwarded("Proto=https;FoR=192.0.2.1;BY=10.0.0.1"), "192.0.2.1"},
		"Forwarded, quoted":             {proxy, forwarded(`for="192.0.2.1:50000"`), "192.0.2.1"},
		"Forwarded, IPv6":               {proxy, forwarded(`for="[2001:db8:1:2::6]:50000";proto=https`), "2001:db8:1:2::"},
		"Forwarded, IPv6 unquoted":      {proxy, forwarded(`for=[2001:db8:1:2::6]`), "2001:db8:1:2::"},
		"Forwarded, escapes":            {proxy, forwarded(`for="\1\9\2.0.2.1"`), "192.0.2.1"},
		"Forwarded, an obfuscated port": {proxy, forwarded(`for="192.0.2.1:_gazonk"`), "192.0.2.1"},
		"Forwarded, several elements":   {proxy, forwarded("for=" + ghost + ", for=192.0.2.1;proto=http , for=10.0.0.1"), "192.0.2.1"},
		"Forwarded, several lines":      {proxy, forwarded("for="+ghost, "for=192.0.2.1", "for=10.0.0.1"), "192.0.2.1"},
		"Forwarded, empty pairs":        {proxy, forwarded(";for=192.0.2.1;;proto=http;"), "192.0.2.1"},
		"Forwarded, spaces":             {proxy, forwarded(" proto=http ; for=192.0.2.1 "), "192.0.2.1"},
		"Forwarded, unknown":            {proxy, forwarded("for=" + ghost + ", for=unknown"), "127.0.0.1"},
		"Forwarded, obfuscated":         {proxy, forwarded("for=" + ghost + ", for=_hidden"), "127.0.0.1"},
		"Forwarded, obfuscated behind":  {proxy, forwarded(`for=` + ghost + `, for="_SEVKISEK", for=10.0.0.1`), "10.0.0.1"},
		"Forwarded, without for":        {proxy, forwarded("for=" + ghost + ", proto=https"), "127.0.0.1"},
		"Forwarded, for twice":          {proxy, forwarded("for=192.0.2.1;for=" + ghost), "127.0.0.1"},
		"Forwarded, all are trusted":    {proxy, forwarded("for=10.0.0.2, for=10.0.0.1"), "10.0.0.2"},
		"X-Forwarded-For comes first":   {proxy, http.Header{"X-Forwarded-For": {"192.0.2.1"}, "Forwarded": {"for=" + ghost}}, "192.0.2.1"},

		// The client chose the Host that the proxy quotes.
		"Forwarded, a comma in the Host":      {proxy, forwarded(`for=192.0.2.1;host="a,for=` + ghost + `"`), "192.0.2.1"},
		"Forwarded, a semicolon in the Host":  {proxy, forwarded(`for=192.0.2.1;host="a;for=` + ghost + `"`), "192.0.2.1"},
		"Forwarded, a quote in the Host":      {proxy, forwarded(`for=192.0.2.1;host="a\",for=` + ghost + `"`), "192.0.2.1"},
		"Forwarded, the Host is not quoted":   {proxy, forwarded(`for=192.0.2.1;host=a;for=` + ghost), "127.0.0.1"},
		"Forwarded, a quote left open":        {proxy, forwarded(`for="x, for=192.0.2.1`), "127.0.0.1"},
		"Forwarded, a quote that takes":       {proxy, forwarded(`for="x, for=192.0.2.1;host="a,for=` + ghost + `;x=""`), "127.0.0.1"},
		"Forwarded, a quote that gives":       {proxy, forwarded(`for="x, for=192.0.2.1;host=",for=` + ghost + `;x="`), "127.0.0.1"},
		"Forwarded, a quote in another line":  {proxy, forwarded(`for="x`, `for=192.0.2.1`), "192.0.2.1"},
		"Forwarded, an escape at the end":     {proxy, forwarded(`for="192.0.2.1\`), "127.0.0.1"},
		"Forwarded, text after a quote":       {proxy, forwarded(`for="192.0.2.1"x`), "127.0.0.1"},
		"Forwarded, no value":                 {proxy, forwarded(`for=`), "127.0.0.1"},
		"Forwarded, no pair":                  {proxy, forwarded(`192.0.2.1`), "127.0.0.1"},
		"Forwarded, an empty line":            {proxy, forwarded(``), "127.0.0.1"},
		"Forwarded, an equals sign in a name": {proxy, forwarded(`a b=c;for=192.0.2.1`), "127.0.0.1"},
	} {
		r := httptest.NewRequest(http.MethodGet, "/news", nil)
		r.RemoteAddr = tc.peer
		if tc.header != nil {
			r.Header = tc.header
		}
		want := netip.Addr{}
		if tc.want != "" {
			want = netip.MustParseAddr(tc.want)
		}
		if got := (&policy{proxies: trusted}).address(r); got != want {
			t.Errorf("%s: %s with %v counts as %v, not %q", name, tc.peer, tc.header, got, tc.want)
		}
	}
}

// Whoever is on the machine could say anything there.
func TestTheAddressOfAUnixSocketIsTrustedAsLoopbackIs(t *testing.T) {
	r := httptest.NewRequest(http.MethodGet, "/news", nil)
	r.RemoteAddr = "@"
	r.Header.Set("X-Forwarded-For", "192.0.2.1")
	for _, tc := range []struct {
		trusted []netip.Prefix
		want    string
	}{
		{nil, "127.0.0.1"},
		{proxiesAt("10.0.0.0/8"), "127.0.0.1"},
		{proxiesAt("127.0.0.1/32"), "192.0.2.1"},
	} {
		if got := (&policy{proxies: tc.trusted}).address(r); got != netip.MustParseAddr(tc.want) {
			t.Errorf("with %v trusted it counts as %v, not %s", tc.trusted, got, tc.want)
		}
	}
}

// What a client sends itself never becomes what a proxy that quotes as the standard
// says has added to it.
func FuzzForwarded(f *testing.F) {
	for _, sent := range []string{"", "for=203.0.113.66", `for="`, `for="x\`, `"`, ",", ";", `a="\",for=203.0.113.66`} {
		f.Add(sent, "example.org")
		f.Add(sent, `,for=203.0.113.66;x=`)
		f.Add(sent, `a,for=203.0.113.66;x="`)
	}
	p := &policy{proxies: proxiesAt("127.0.0.1/32")}
	f.Fuzz(func(t *testing.T, sent, host string) {
		var quoted []byte
		for _, c := range []byte(host) {
			if c == '"' || c == '\\' {
				quoted = append(quoted, '\\')
			}
			quoted = append(quoted, c)
		}
		r := &http.Request{RemoteAddr: "127.0.0.1:4711", Header: http.Header{
			"Forwarded": {sent + `, for=192.0.2.1;host="` + string(quoted) + `"`}}}
		if got := p.address(r).String(); got != "192.0.2.1" && got != "127.0.0.1" {
			t.Errorf("%q counts as %s", r.Header, got)
		}
	})
}
