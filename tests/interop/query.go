// This file is responsible for `interop query`: what Go's net/url makes of a
// raw query (WIRE.md 2.6), with nothing of ours in between.
package main

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"io"
	"maps"
	"net/url"
	"slices"
)

// queryLine is the answer to one raw query.
type queryLine struct {
	Encoded string      `json:"encoded"` // parsed and encoded again; always ASCII
	Pairs   [][2]string `json:"pairs"`   // key and value in hexadecimal, in the order of `encoded`
	Error   string      `json:"error"`   // of the parser, which drops a pair and goes on; "" if none
}

func queryCommand(ctx context.Context, args []string, stdin io.Reader, out *lines) error {
	if err := parseFlags(newFlags("query"), args, false); err != nil {
		return err
	}
	return eachLine(ctx, stdin, out, func(line []byte) any {
		var raw rawBytes
		if err := json.Unmarshal(line, &raw); err != nil {
			return inputError{err.Error()}
		}
		return reencode(string(raw))
	})
}

func reencode(raw string) queryLine {
	values, err := url.ParseQuery(raw)
	line := queryLine{Encoded: values.Encode(), Pairs: [][2]string{}}
	if err != nil {
		line.Error = err.Error()
	}
	for _, key := range slices.Sorted(maps.Keys(values)) {
		for _, value := range values[key] {
			line.Pairs = append(line.Pairs, [2]string{hex.EncodeToString([]byte(key)), hex.EncodeToString([]byte(value))})
		}
	}
	return line
}
