package doctor

import (
	"debug/elf"
	"errors"
	"fmt"
	"slices"
)

// Object is what the doctor knows of a shared library.
type Object struct {
	// Exports are the names of its defined dynamic symbols, sorted.
	Exports []string
	// PluginVersion is the value of plugin_version, which SPANK_PLUGIN sets to
	// SLURM_VERSION_NUMBER (slurm/spank.h); 0 if it has none.
	PluginVersion uint32
}

// Has reports whether the library exports that name.
func (o Object) Has(name string) bool {
	_, found := slices.BinarySearch(o.Exports, name)
	return found
}

// ReadObject reads an ELF file. It runs nothing of it.
func ReadObject(path string) (Object, error) {
	f, err := elf.Open(path)
	if err != nil {
		return Object{}, fmt.Errorf("read library: %w", err)
	}
	defer f.Close() //nolint:errcheck // nothing was written
	symbols, err := f.DynamicSymbols()
	if err != nil && !errors.Is(err, elf.ErrNoSymbols) {
		return Object{}, fmt.Errorf("read symbols of %s: %w", path, err)
	}
	var o Object
	for _, s := range symbols {
		if s.Section == elf.SHN_UNDEF || elf.ST_BIND(s.Info) == elf.STB_LOCAL {
			continue
		}
		o.Exports = append(o.Exports, s.Name)
		if s.Name == "plugin_version" {
			o.PluginVersion = word(f, s)
		}
	}
	slices.Sort(o.Exports)
	return o, nil
}

// word reads the 32 bits that a symbol stands for, 0 if they are not in the
// file.
func word(f *elf.File, s elf.Symbol) uint32 {
	if int(s.Section) >= len(f.Sections) {
		return 0
	}
	section := f.Sections[s.Section]
	var b [4]byte
	if s.Value < section.Addr {
		return 0
	}
	at := s.Value - section.Addr
	if section.Type == elf.SHT_NOBITS || at+uint64(len(b)) > section.Size {
		return 0
	}
	if _, err := section.ReadAt(b[:], int64(at)); err != nil { //nolint:gosec // within the section
		return 0
	}
	return f.ByteOrder.Uint32(b[:])
}
