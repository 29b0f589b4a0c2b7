package fakefc

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strings"
)

// decode is serde_json's strict reading of body into the struct into points to, with its words for what is wrong
// (deny_unknown_fields). Fields are required where their tag says `fc:"required"`; `enum:"A|B"` lists what a string may be. what is the name
// of an unknown field's place.
func decode(body []byte, into any) error {
	d := &decoder{text: body}
	rest := json.NewDecoder(bytes.NewReader(body))
	var raw json.RawMessage
	if err := rest.Decode(&raw); err != nil {
		return d.syntax(err)
	}
	end := int(rest.InputOffset())
	if err := d.value(end-len(raw), raw, reflect.ValueOf(into).Elem(), ""); err != nil {
		return err
	}
	if _, err := rest.Token(); !errors.Is(err, io.EOF) {
		return d.at(end+1, "trailing characters")
	}
	return nil
}

type decoder struct{ text []byte }

// at is an error at an offset of the text.
func (d *decoder) at(offset int, format string, args ...any) error {
	offset = min(offset, len(d.text))
	before := d.text[:offset]
	line := 1 + bytes.Count(before, []byte{'\n'})
	column := offset - 1 - bytes.LastIndexByte(before, '\n')
	return fmt.Errorf("%s at line %d column %d", fmt.Sprintf(format, args...), line, column)
}

func (d *decoder) syntax(err error) error {
	if s, ok := errors.AsType[*json.SyntaxError](err); ok && !errors.Is(err, io.ErrUnexpectedEOF) {
		return d.at(int(s.Offset), "expected value")
	}
	return d.at(len(d.text), "EOF while parsing a value")
}

// value decodes raw, which is at base, into v.
func (d *decoder) value(base int, raw json.RawMessage, v reflect.Value, enum string) error {
	switch {
	case v.Kind() == reflect.Pointer:
		if string(raw) == "null" {
			return nil
		}
		v.Set(reflect.New(v.Type().Elem()))
		return d.value(base, raw, v.Elem(), enum)
	case v.Kind() == reflect.Struct:
		return d.object(base, raw, v)
	case v.Kind() == reflect.Slice && v.Type().Elem().Kind() == reflect.Struct:
		return d.array(base, raw, v)
	}
	if err := json.Unmarshal(raw, v.Addr().Interface()); err != nil || string(raw) == "null" {
		return d.at(base+len(raw), "invalid %s, expected %s", unexpected(raw), rustType(v.Type()))
	}
	if allowed := strings.Split(enum, "|"); enum != "" && !slices.Contains(allowed, v.String()) {
		return d.at(base+len(raw), "unknown variant `%s`, expected %s", v.String(), oneOf(allowed))
	}
	return nil
}

func (d *decoder) object(base int, raw json.RawMessage, v reflect.Value) error {
	if raw[0] != '{' {
		return d.at(base+len(raw), "invalid %s, expected struct %s", unexpected(raw), v.Type().Name())
	}
	fields := map[string]int{}
	var names []string
	for i := range v.NumField() {
		name, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("json"), ",")
		fields[name] = i
		names = append(names, name)
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	_, _ = dec.Token() // {
	seen := map[string]bool{}
	for dec.More() {
		key, err := dec.Token()
		if err != nil {
			return d.syntax(err)
		}
		name, _ := key.(string)
		at := base + int(dec.InputOffset())
		i, known := fields[name]
		switch {
		case !known && len(names) == 0:
			return d.at(at, "unknown field `%s`, there are no fields", name)
		case !known:
			return d.at(at, "unknown field `%s`, expected %s", name, oneOf(names))
		case seen[name]:
			return d.at(at, "duplicate field `%s`", name)
		}
		seen[name] = true
		var field json.RawMessage
		if err := dec.Decode(&field); err != nil {
			return d.syntax(err)
		}
		if err := d.value(base+int(dec.InputOffset())-len(field), field, v.Field(i), v.Type().Field(i).Tag.Get("enum")); err != nil {
			return err
		}
	}
	for _, name := range names {
		if v.Type().Field(fields[name]).Tag.Get("fc") == "required" && !seen[name] {
			return d.at(base+len(raw), "missing field `%s`", name)
		}
	}
	return nil
}

func (d *decoder) array(base int, raw json.RawMessage, v reflect.Value) error {
	if raw[0] != '[' {
		return d.at(base+len(raw), "invalid %s, expected a sequence", unexpected(raw))
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	_, _ = dec.Token() // [
	v.Set(reflect.MakeSlice(v.Type(), 0, 0))
	for dec.More() {
		var item json.RawMessage
		if err := dec.Decode(&item); err != nil {
			return d.syntax(err)
		}
		to := reflect.New(v.Type().Elem()).Elem()
		if err := d.value(base+int(dec.InputOffset())-len(item), item, to, ""); err != nil {
			return err
		}
		v.Set(reflect.Append(v, to))
	}
	return nil
}

// oneOf lists names as serde does.
func oneOf(names []string) string {
	for i, n := range names {
		names[i] = "`" + n + "`"
	}
	switch len(names) {
	case 1:
		return names[0]
	case 2:
		return names[0] + " or " + names[1]
	}
	return "one of " + strings.Join(names, ", ")
}

// unexpected is serde's name for a value of a wrong type.
func unexpected(raw json.RawMessage) string {
	switch raw[0] {
	case '"':
		return "type: string " + string(raw)
	case '{':
		return "type: map"
	case '[':
		return "type: sequence"
	case 't', 'f':
		return "type: boolean `" + string(raw) + "`"
	case 'n':
		return "type: null"
	}
	if bytes.ContainsAny(raw, ".eE") {
		return "type: floating point `" + string(raw) + "`"
	}
	return "value: integer `" + string(raw) + "`"
}

func rustType(t reflect.Type) string {
	switch t.Kind() {
	case reflect.String:
		return "a string"
	case reflect.Bool:
		return "a boolean"
	case reflect.Uint8:
		return "u8"
	case reflect.Uint16:
		return "u16"
	case reflect.Uint32:
		return "u32"
	case reflect.Uint64:
		return "usize"
	}
	return t.String()
}
