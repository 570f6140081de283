package blockring_test

import (
	"blockring"
	"errors"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"time"
)

func Example() {
	folder, err := os.MkdirTemp("", "blockring")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(folder)
	address := filepath.Join(folder, "ring")
	if err := blockring.Create(address, 1<<20); err != nil {
		log.Fatal(err)
	}

	producer, err := blockring.AttachProducer(address, "web-1", blockring.Flush)
	if err != nil {
		log.Fatal(err)
	}
	writer := blockring.NewWriter(producer, time.Minute)
	logger := log.New(writer, "web-1: ", 0)
	logger.Print("started") // an item, and published
	writer.Close()

	consumer, err := blockring.AttachConsumer(address, "collector", blockring.Flush)
	if err != nil {
		log.Fatal(err)
	}
	at, err := consumer.Position()
	for err == nil {
		var item []byte
		switch item, at, err = consumer.Pop(at); {
		case err == nil:
			fmt.Print(string(item))
			err = consumer.Advance(at)
		case errors.Is(err, blockring.ErrRetry):
			err = consumer.Wait(at, time.Millisecond)
		}
	}
	fmt.Println(errors.Is(err, blockring.ErrTimedOut))
	// Output:
	// web-1: started
	// true
}
