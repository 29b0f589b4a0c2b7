package fakefc

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"

	"github.com/getkin/kin-openapi/openapi2"
	"github.com/getkin/kin-openapi/openapi2conv"
	"github.com/getkin/kin-openapi/openapi3"
	"go.yaml.in/yaml/v4"
)

// spec is Firecracker's API document (Swagger 2). The zero value, and nil, know none and find nothing wrong.
type spec struct {
	path string
	load func() (*openapi3.T, error)
}

// newSpec is the document in the file at path; empty for none. It is read when it is first needed.
func newSpec(path string) *spec {
	if path == "" {
		return nil
	}
	return &spec{path: path, load: sync.OnceValues(func() (*openapi3.T, error) { return loadSpec(path) })}
}

func loadSpec(path string) (*openapi3.T, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var tree any
	if err := yaml.Unmarshal(text, &tree); err != nil {
		return nil, fmt.Errorf("read %q: %w", path, err)
	}
	if text, err = json.Marshal(jsonTree(tree)); err != nil {
		return nil, fmt.Errorf("read %q: %w", path, err)
	}
	var old openapi2.T
	if err := json.Unmarshal(text, &old); err != nil {
		return nil, fmt.Errorf("read %q: %w", path, err)
	}
	doc, err := openapi2conv.ToV3(&old)
	if err != nil {
		return nil, fmt.Errorf("read %q: %w", path, err)
	}
	if err := openapi3.NewLoader().ResolveRefsIn(doc, nil); err != nil {
		return nil, fmt.Errorf("read %q: %w", path, err)
	}
	for _, s := range doc.Components.Schemas {
		// A name that is not in the document is not Firecracker's.
		if len(s.Value.Properties) > 0 && s.Value.AdditionalProperties.Has == nil {
			s.Value.AdditionalProperties.Has = new(bool)
		}
	}
	return doc, doc.Validate(context.Background(), openapi3.DisableExamplesValidation(), openapi3.DisableSchemaDefaultsValidation(),
		openapi3.DisableSchemaFormatValidation())
}

// jsonTree is a tree of YAML with names that are strings: statuses are numbers there.
func jsonTree(v any) any {
	switch v := v.(type) {
	case map[any]any:
		out := map[string]any{}
		for name, value := range v {
			out[fmt.Sprint(name)] = jsonTree(value)
		}
		return out
	case map[string]any:
		for name, value := range v {
			v[name] = jsonTree(value)
		}
	case []any:
		for i, value := range v {
			v[i] = jsonTree(value)
		}
	}
	return v
}

// check returns what is wrong with a request according to the document, as a fault, and notes it as a violation.
func (s *spec) check(method, path string, body []byte) error {
	if s == nil {
		return nil
	}
	schema, required, err := s.schema(method, path)
	switch {
	case err != nil:
	case schema == nil && len(body) > 0:
		err = fmt.Errorf("%s %s has no body", method, path)
	case schema == nil || len(body) == 0 && !required:
	case len(body) == 0:
		err = fmt.Errorf("%s %s has a body", method, path)
	default:
		err = visit(schema, body)
	}
	if err == nil {
		return nil
	}
	text := err.Error()
	if s, ok := errors.AsType[*openapi3.SchemaError](err); ok {
		text = "/" + strings.Join(s.JSONPointer(), "/") + ": " + s.Reason
	}
	violation("%s %s: %s", method, path, text)
	return faultf("spec: %s", text)
}

// checkAnswer is check for the body of an answer with status 200.
func (s *spec) checkAnswer(method, path string, body []byte) error {
	op, err := s.operation(method, path)
	if err != nil {
		return err
	}
	answer := op.Responses.Status(200)
	if answer == nil || answer.Value.Content["application/json"] == nil {
		return fmt.Errorf("%s %s answers with no body", method, path)
	}
	return visit(answer.Value.Content["application/json"].Schema.Value, body)
}

func visit(schema *openapi3.Schema, body []byte) error {
	var value any
	if err := json.Unmarshal(body, &value); err != nil {
		return err
	}
	return schema.VisitJSON(value)
}

func (s *spec) operation(method, path string) (*openapi3.Operation, error) {
	doc, err := s.load()
	if err != nil {
		return nil, err
	}
	item := doc.Paths.Value(path)
	if item == nil {
		for template, it := range doc.Paths.Map() {
			head, rest, _ := strings.Cut(template, "{")
			if name, ok := strings.CutPrefix(path, head); ok && rest != "" && name != "" && !strings.Contains(name, "/") {
				item = it
			}
		}
	}
	if item == nil || item.GetOperation(method) == nil {
		return nil, fmt.Errorf("no %s %s in %s", method, path, s.path)
	}
	return item.GetOperation(method), nil
}

func (s *spec) schema(method, path string) (schema *openapi3.Schema, required bool, err error) {
	op, err := s.operation(method, path)
	if err != nil || op.RequestBody == nil {
		return nil, false, err
	}
	body := op.RequestBody.Value
	for _, media := range body.Content {
		return media.Schema.Value, body.Required, nil
	}
	return nil, false, fmt.Errorf("no schema of %s %s in %s", method, path, s.path)
}
