// Command neturl writes vectors.json: what Go's net/url makes of a few hundred awkward queries. The Rust test
// `agrees_with_go_net_url` holds our query parser and encoder to it. It needs only the standard library and gives
// the same output on every run of one Go version (written with Go 1.26):
//
//	go run main.go > vectors.json
package main

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math/rand"
	"net/url"
	"os"
	"strings"
)

// vector is one query. Bytes are hex because JSON has no bytes.
type vector struct {
	Raw     string  `json:"raw"`
	Encoded string  `json:"encoded"`
	Name    *string `json:"name"`
}

func main() {
	queries := byHand()
	for b := 0; b < 256; b++ {
		queries = append(queries, "k"+string([]byte{byte(b)})+"=v"+string([]byte{byte(b)})+"w")
		queries = append(queries, fmt.Sprintf("k%%%02x=v%%%02X", b, b))
	}
	queries = append(queries, random(400)...)

	vectors := make([]vector, 0, len(queries))
	for _, query := range queries {
		u := url.URL{RawQuery: query}
		values := u.Query()
		v := vector{Raw: hex.EncodeToString([]byte(query)), Encoded: values.Encode()}
		if values.Has("name") {
			name := hex.EncodeToString([]byte(values.Get("name")))
			v.Name = &name
		}
		vectors = append(vectors, v)
	}
	out := json.NewEncoder(os.Stdout)
	out.SetEscapeHTML(false)
	out.SetIndent("", " ")
	if err := out.Encode(vectors); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func byHand() []string {
	return []string{
		"", "&", "=", "==", "&=&", "a", "a=", "=a", "a=b=c", "a&b", "&&a=1&&b=2&&",
		"until=2&from=1&name=app{z=1}&a=3&a=1&format=pprof",
		"name=foo&name=bar", "name=&name=bar", "name", "n%61me=x", "+name=x", "name+=x", "%6E%61%6D%65=1&name=2",
		"name=a;b", "name=a%3Bb", "na;me=a&b=1", ";", ";=;", "a;&b", "&;&",
		"%", "%%", "%a", "%zz", "%4", "%41", "%4g=1", "a=%", "a=%4", "a=%zz&b=1", "%zz=1&b=1", "a=%%41", "a=%2", "%2=a",
		"a=%00", "a=%ff%fe", "a=%c3%a9", "a=é", "a=\xff", "%ff=\xfe",
		"a=1+2", "a=1%2B2", "a=1%202", "+=+", "%2b=%2B",
		"a=1#b", "a=?&b=?", "?a=1", "a[]=1&a[0]=2", "a=1&A=2&_=3&B=4&%5f=5",
		"b=1&a=1&b=0&a=0&b=2", "ab=1&a=2&a%00=3&a%ff=4&a~=5", "z=1&%C3%A9=2&~=3&!=4",
		"a=" + strings.Repeat("%25", 500), strings.Repeat("a", 3000) + "=" + strings.Repeat("é", 500),
		strings.Repeat("a=1&", 200), strings.Repeat("&", 9999), strings.Repeat("&", 9999) + "&a=1",
		"a=1" + strings.Repeat("&", 9999), "a=1" + strings.Repeat("&", 10000), strings.Repeat(";&", 9999) + "a=1",
		"=&=2&=1&=", "=&==&=", "a=\r\n&b=\t", "a='\"`<>\\^|&b=!*()", "a=-_.~&b=:@/$,",
	}
}

// random makes queries of pieces that matter, from a fixed seed.
func random(count int) []string {
	pieces := []string{
		"&", "&", "&", "=", "=", ";", "%", "+", " ", "name", "name=", "a", "b", "%41", "%6e", "%zz", "%2", "%26", "%3D",
		"%3b", "{", "}", ",", "é", "\xff", "%ff", "~", "/", "from=1", "until=2", "%25", "%00", "\x00",
	}
	source := rand.New(rand.NewSource(20260821))
	queries := make([]string, count)
	for i := range queries {
		var query strings.Builder
		for range source.Intn(24) {
			query.WriteString(pieces[source.Intn(len(pieces))])
		}
		queries[i] = query.String()
	}
	return queries
}
