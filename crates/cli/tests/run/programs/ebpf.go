// A program on cilium/ebpf, which never sets map_ifindex.
package main

import (
	"fmt"
	"os"

	"github.com/cilium/ebpf"
)

func check(what string, err error) {
	if err != nil {
		fmt.Println("wrong:", what+":", err)
		os.Exit(1)
	}
}

func main() {
	pin := os.Args[1]
	m, err := ebpf.NewMap(&ebpf.MapSpec{Name: "flows", Type: ebpf.Hash, KeySize: 4, ValueSize: 8, MaxEntries: 1000})
	check("NewMap", err)
	for i := uint32(0); i < 100; i++ {
		check("Put", m.Put(i, uint64(i)*5))
	}
	keys, values := make([]uint32, 100), make([]uint64, 100)
	for i := range keys {
		keys[i], values[i] = uint32(1000+i), 1
	}
	n, err := m.BatchUpdate(keys, values, nil)
	check("BatchUpdate", err)
	check("Pin", m.Pin(pin))
	check("Close", m.Close())
	m, err = ebpf.LoadPinnedMap(pin, nil)
	check("LoadPinnedMap", err)
	var key uint32
	var value, sum uint64
	count := 0
	it := m.Iterate()
	for it.Next(&key, &value) {
		count++
		sum += value
	}
	check("Iterate", it.Err())
	check("Delete", m.Delete(uint32(1)))
	if err := m.Lookup(uint32(1), &value); err == nil {
		fmt.Println("wrong: a key that was deleted is there")
		os.Exit(1)
	}
	info, err := m.Info()
	check("Info", err)
	// Where offmap answers for pins there is no file to be removed.
	if os.Args[2] == "kernel" {
		check("Unpin", os.Remove(pin))
	}
	fmt.Println("flows", n, count, sum, info.Name)
}
