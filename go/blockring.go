// Package blockring pushes to and pops from rings on block devices, over the C library of the
// project (pkg-config blockring). docs/go.md is its page.
//
// Every method may wait or fail as the function of the C library that it calls; an error is an
// *Error. A Producer, Consumer or Writer is used by one goroutine at a time; a second one gets
// ErrBusy.
package blockring

/*
#cgo pkg-config: blockring
#include <blockring.h>
#include <stdlib.h>
*/
import "C"

import (
	"errors"
	"fmt"
	"syscall"
	"time"
	"unsafe"
)

// Position is a place in the stream of a ring: bytes since the ring was created.
type Position uint64

// Error is an error of the library. Its kind is compared by errors.Is(err, blockring.ErrRetry).
type Error struct {
	// Name of the error, the same in every language of the library, such as "role_taken".
	Name string
	// Text says what failed, on what, and why.
	Text string
	// Errno is the operating system's error, or 0.
	Errno syscall.Errno
	// From and To are the positions that a superseded, format or invalid_* error is about.
	From, To Position
	code     C.int32_t
}

func (e *Error) Error() string { return e.Name + ": " + e.Text }

// Is compares the kinds of errors.
func (e *Error) Is(target error) bool {
	other, ok := target.(*Error)
	return ok && other.code == e.code
}

// Unwrap returns the operating system's error, so that errors.Is(err, fs.ErrNotExist) works.
func (e *Error) Unwrap() error {
	if e.Errno == 0 {
		return nil
	}
	return e.Errno
}

// The kinds of errors that a program tells apart, for errors.Is.
var (
	ErrRetry      = kind(C.BLOCKRING_RETRY)
	ErrSuspended  = kind(C.BLOCKRING_SUSPENDED)
	ErrDetached   = kind(C.BLOCKRING_DETACHED)
	ErrFailed     = kind(C.BLOCKRING_FAILED)
	ErrSuperseded = kind(C.BLOCKRING_SUPERSEDED)
	ErrTooLarge   = kind(C.BLOCKRING_TOO_LARGE)
	ErrRoleTaken  = kind(C.BLOCKRING_ROLE_TAKEN)
	ErrFormat     = kind(C.BLOCKRING_FORMAT)
	ErrDevice     = kind(C.BLOCKRING_DEVICE)
	ErrTimedOut   = kind(C.BLOCKRING_TIMED_OUT)
	ErrBusy       = kind(C.BLOCKRING_BUSY)
	ErrInvalid    = kind(C.BLOCKRING_INVALID_ARGUMENT)
)

func kind(code C.int32_t) *Error {
	name, text := C.blockring_code_name(code), C.blockring_strerror(code)
	return &Error{Name: C.GoString(name), Text: C.GoString(text), code: code}
}

// answer makes an error of what a call answers.
func answer(code C.blockring_code, found *C.blockring_error) error {
	if code == C.BLOCKRING_OK {
		return nil
	}
	made := kind(C.int32_t(code))
	made.Text, made.Errno = C.GoString(&found.text[0]), syscall.Errno(found.os_error)
	made.From, made.To = Position(found.from), Position(found.to)
	return made
}

// Create makes a new file for a ring of this many bytes, and an empty ring in it.
func Create(path string, bytes uint64) error {
	text := C.CString(path)
	defer C.free(unsafe.Pointer(text))
	var found C.blockring_error
	if err := answer(C.blockring_make_file(text, C.uint64_t(bytes), &found), &found); err != nil {
		return err
	}
	return answer(C.blockring_create(text, nil, nil, &found), &found)
}

// Durability says which flushes an advance makes.
type Durability int32

const (
	// Flush takes nothing back at a power loss. It is the default.
	Flush Durability = C.BLOCKRING_FLUSH
	// Ordered can take back the last advance at a power loss.
	Ordered Durability = C.BLOCKRING_ORDERED
	// PageCache flushes nothing: safe against the death of any process.
	PageCache Durability = C.BLOCKRING_PAGE_CACHE
)

// milliseconds returns a time limit as C has it: negative for none, and never shorter.
func milliseconds(limit time.Duration) C.int64_t {
	if limit < 0 {
		return -1
	}
	return C.int64_t((limit + time.Millisecond - 1) / time.Millisecond)
}

// start returns the address of the bytes, which C reads during the call.
func start(bytes []byte) unsafe.Pointer {
	if len(bytes) == 0 {
		return nil
	}
	return unsafe.Pointer(&bytes[0])
}

// Producer is the only producer of a ring.
type Producer struct{ handle *C.blockring_producer }

// AttachProducer becomes the producer of the ring with this address, as on the command line: a
// path, serial:NAME, unix:PATH or vhost-user:PATH. client is a name for people.
func AttachProducer(address, client string, durability Durability) (*Producer, error) {
	where, queue, name := C.CString(address), C.CString("go"), C.CString(client)
	defer C.free(unsafe.Pointer(where))
	defer C.free(unsafe.Pointer(queue))
	defer C.free(unsafe.Pointer(name))
	options := C.blockring_options{durability: C.int32_t(durability)}
	var producer Producer
	var found C.blockring_error
	code := C.blockring_producer_attach(where, queue, name, &options, &producer.handle, &found)
	if err := answer(code, &found); err != nil {
		return nil, err
	}
	return &producer, nil
}

// Push adds an item, which the consumer sees after an Advance to the position. ErrRetry for lack of
// room, ErrSuspended.
func (p *Producer) Push(item []byte) (Position, error) {
	var at C.uint64_t
	var found C.blockring_error
	code := C.blockring_producer_push(p.handle, start(item), C.size_t(len(item)), &at, &found)
	return Position(at), answer(code, &found)
}

// Advance publishes everything before a position that Push returned.
func (p *Producer) Advance(to Position) error {
	var found C.blockring_error
	return answer(C.blockring_producer_advance(p.handle, C.uint64_t(to), &found), &found)
}

// Wait waits until there is room for an item of this length, and the ring is not suspended;
// ErrTimedOut. A negative limit is none.
func (p *Producer) Wait(length int, limit time.Duration) error {
	// The library looks at the length alone.
	item := C.blockring_slice{length: C.size_t(length)}
	if length > 0 {
		item.bytes = unsafe.Pointer(C.blockring_code_name(0))
	}
	var found C.blockring_error
	code := C.blockring_producer_wait(p.handle, &item, 1, milliseconds(limit), -1, &found)
	return answer(code, &found)
}

// Close gives up the role. What was pushed and not advanced over is lost.
func (p *Producer) Close() error {
	if p.handle == nil {
		return ErrInvalid
	}
	return answerOf(C.blockring_producer_free(&p.handle))
}

// Consumer is the only consumer of a ring.
type Consumer struct{ handle *C.blockring_consumer }

// AttachConsumer becomes the consumer of the ring with this address, as AttachProducer.
func AttachConsumer(address, client string, durability Durability) (*Consumer, error) {
	where, queue, name := C.CString(address), C.CString("go"), C.CString(client)
	defer C.free(unsafe.Pointer(where))
	defer C.free(unsafe.Pointer(queue))
	defer C.free(unsafe.Pointer(name))
	options := C.blockring_options{durability: C.int32_t(durability)}
	var consumer Consumer
	var found C.blockring_error
	code := C.blockring_consumer_attach(where, queue, name, &options, &consumer.handle, &found)
	if err := answer(code, &found); err != nil {
		return nil, err
	}
	return &consumer, nil
}

// Position returns the position of the first item that was not advanced over.
func (c *Consumer) Position() (Position, error) {
	var at C.uint64_t
	var found C.blockring_error
	return Position(at), answer(C.blockring_consumer_position(c.handle, &at, &found), &found)
}

// Pop returns a copy of the item at a position, and the position of the next one; ErrRetry if there
// is none yet.
func (c *Consumer) Pop(from Position) ([]byte, Position, error) {
	var item C.blockring_item
	var found C.blockring_error
	code := C.blockring_consumer_pop(c.handle, C.uint64_t(from), &item, &found)
	if err := answer(code, &found); err != nil {
		return nil, from, err
	}
	if item.length > 1<<31-1 {
		return nil, from, fmt.Errorf("blockring: an item of %d bytes", uint64(item.length))
	}
	return C.GoBytes(item.bytes, C.int(item.length)), Position(item.next), nil
}

// Advance frees the space of everything before a position.
func (c *Consumer) Advance(to Position) error {
	var found C.blockring_error
	return answer(C.blockring_consumer_advance(c.handle, C.uint64_t(to), &found), &found)
}

// Wait waits until there is an item at a position; ErrTimedOut. A negative limit is none.
func (c *Consumer) Wait(from Position, limit time.Duration) error {
	var found C.blockring_error
	code := C.blockring_consumer_wait(c.handle, C.uint64_t(from), milliseconds(limit), -1, &found)
	return answer(code, &found)
}

// Close gives up the role.
func (c *Consumer) Close() error {
	if c.handle == nil {
		return ErrInvalid
	}
	return answerOf(C.blockring_consumer_free(&c.handle))
}

// answerOf makes an error of an answer without details.
func answerOf(code C.blockring_code) error {
	if code == C.BLOCKRING_OK {
		return nil
	}
	return kind(C.int32_t(code))
}

// Writer is an io.WriteCloser: each Write is an item, and is published when it returns. It waits
// for room, and while the ring is suspended, for at most the time limit.
type Writer struct {
	producer *Producer
	limit    time.Duration
}

// NewWriter makes a writer of a producer, which it owns from then on. A negative limit is none.
func NewWriter(producer *Producer, limit time.Duration) *Writer {
	return &Writer{producer, limit}
}

// Write publishes the bytes as one item. After ErrTimedOut the item is not in the ring, unless the
// ring was suspended between push and advance: then it is published by the next Write.
func (w *Writer) Write(item []byte) (int, error) {
	end, err := w.producer.Push(item)
	for errors.Is(err, ErrRetry) || errors.Is(err, ErrSuspended) {
		if err = w.producer.Wait(len(item), w.limit); err != nil {
			return 0, err
		}
		end, err = w.producer.Push(item)
	}
	if err != nil {
		return 0, err
	}
	for err = w.producer.Advance(end); errors.Is(err, ErrSuspended); err = w.producer.Advance(end) {
		if err = w.producer.Wait(0, w.limit); err != nil {
			return 0, err
		}
	}
	if err != nil {
		return 0, err
	}
	return len(item), nil
}

// Close closes the producer.
func (w *Writer) Close() error { return w.producer.Close() }
