package webhook

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// tolerance is how far the time of a signature may be from the server's: what was
// recorded earlier can't be sent again.
const tolerance = 5 * time.Minute

// A signature is what a request says that its body was signed with: HMAC-SHA256 with a
// secret (RFC 2104) over before and the body.
type signature struct {
	before string
	sums   [][]byte // one of which it must be
}

// by reports whether it is the signature of a body with a secret.
func (s *signature) by(secret string, body []byte) bool {
	h := hmac.New(sha256.New, []byte(secret))
	h.Write([]byte(s.before))
	h.Write(body)
	want, right := h.Sum(nil), false
	for _, sum := range s.sums {
		right = hmac.Equal(sum, want) || right
	}
	return right
}

// signedByGitHub reads "X-Hub-Signature-256: sha256=HEX", or says what is wrong.
func signedByGitHub(h http.Header) (signed *signature, wrong string) {
	const wanted = ": send X-Hub-Signature-256: sha256=…, the HMAC-SHA256 of the body with the webhook's secret in hexadecimal"
	text := h.Get("X-Hub-Signature-256")
	if text == "" {
		return nil, "the request is not signed" + wanted
	}
	sum, ok := strings.CutPrefix(text, "sha256=")
	b, err := hex.DecodeString(sum)
	if !ok || err != nil || len(b) != sha256.Size {
		return nil, "the signature can't be read" + wanted
	}
	return &signature{sums: [][]byte{b}}, ""
}

// signedByStripe reads "Stripe-Signature: t=SECONDS,v1=HEX", with several v1 where a
// secret is being replaced, or says what is wrong.
func signedByStripe(h http.Header, now time.Time) (signed *signature, wrong string) {
	const wanted = ": send Stripe-Signature: t=SECONDS,v1=…, the HMAC-SHA256 of SECONDS, a dot and the body with the endpoint's secret in hexadecimal"
	text := h.Get("Stripe-Signature")
	if text == "" {
		return nil, "the request is not signed" + wanted
	}
	at, signed := "", &signature{}
	for pair := range strings.SplitSeq(text, ",") {
		name, v, _ := strings.Cut(strings.TrimSpace(pair), "=")
		switch name {
		case "t":
			at = v
		case "v1":
			if b, err := hex.DecodeString(v); err == nil && len(b) == sha256.Size {
				signed.sums = append(signed.sums, b)
			}
		}
	}
	seconds, err := strconv.ParseInt(at, 10, 64)
	switch {
	case err != nil || len(signed.sums) == 0:
		return nil, "the signature can't be read" + wanted
	case now.Sub(time.Unix(seconds, 0)).Abs() > tolerance:
		return nil, "the signature is of " + strconv.FormatInt(seconds, 10) + ", and now is " + strconv.FormatInt(now.Unix(), 10) + ": it may be five minutes off at most"
	}
	signed.before = at + "."
	return signed, ""
}
