// This file is responsible for counting and hashing a body while someone else
// reads it. It holds no bytes.
package main

import (
	"crypto/sha256"
	"encoding/hex"
	"hash"
	"io"
	"sync"
)

// tally wraps a body; sum may be called while another goroutine reads.
type tally struct {
	body  io.ReadCloser
	mu    sync.Mutex
	bytes int64
	hash  hash.Hash
}

func newTally(body io.ReadCloser) *tally {
	return &tally{body: body, hash: sha256.New()}
}

func (t *tally) Read(into []byte) (int, error) {
	n, err := t.body.Read(into)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.bytes += int64(n)
	t.hash.Write(into[:n])
	return n, err
}

func (t *tally) Close() error { return t.body.Close() }

// sum is the count and the hexadecimal SHA-256 of what was read so far.
func (t *tally) sum() (int64, string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.bytes, hex.EncodeToString(t.hash.Sum(nil))
}
