// Renders charts as `helm template` does, with helm's own packages, for one caller over standard input and output: a
// JSON object a line in, a JSON object a line out. A start of helm costs a tenth of a second, a rendering here milliseconds.
//
// It can also say which marks of an instrumented chart were passed. A mark is a call of helm's function `lookup`, which is
// the one function that reaches out of a template: it asks a client for the kind, and the client is made here. Everything
// that the client is asked for does not exist, as for `helm template`.
package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"maps"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"helm.sh/helm/v3/pkg/chart"
	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
	"helm.sh/helm/v3/pkg/release"
	"helm.sh/helm/v3/pkg/releaseutil"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"sigs.k8s.io/yaml"
)

// markVersion is the apiVersion that a mark looks up; its kind is the mark's name.
const markVersion = "chart-harness/mark"

// Request asks for one rendering.
type Request struct {
	Chart       string          `json:"chart"`        // folder
	Values      []string        `json:"values"`       // values files, the last one wins
	Overrides   json.RawMessage `json:"overrides"`    // values over those of the files
	Release     string          `json:"release"`      // name
	Namespace   string          `json:"namespace"`    // of the release
	KubeVersion string          `json:"kube_version"` // what the templates see
	APIVersions []string        `json:"api_versions"` // beside those of Kubernetes
	Upgrade     bool            `json:"upgrade"`      // as `helm upgrade` renders
}

// Answer is what `helm template` would print: one of Output and Error is empty.
type Answer struct {
	Output string   `json:"output"`
	Error  string   `json:"error"`
	Marks  []string `json:"marks"` // names of the marks, in the order they were passed
}

// marks provides a client for which nothing exists, and notes the marks among what it is asked for.
type marks struct {
	passed []string
}

func (m *marks) GetClientFor(apiVersion, kind string) (dynamic.NamespaceableResourceInterface, bool, error) {
	if apiVersion == markVersion {
		m.passed = append(m.passed, kind)
	}
	return nothing{}, false, nil
}

// nothing is a client of an empty cluster. `lookup` gets and lists; the rest of the interface is never called.
type nothing struct {
	dynamic.NamespaceableResourceInterface
}

func (nothing) Namespace(string) dynamic.ResourceInterface { return nothing{} }

func (nothing) Get(_ context.Context, name string, _ metav1.GetOptions, _ ...string) (*unstructured.Unstructured, error) {
	return nil, apierrors.NewNotFound(schema.GroupResource{}, name)
}

func (nothing) List(context.Context, metav1.ListOptions) (*unstructured.UnstructuredList, error) {
	return nil, apierrors.NewNotFound(schema.GroupResource{}, "")
}

// merge lays one mapping over another, as `helm --values` does for its second file.
func merge(under, over map[string]any) map[string]any {
	merged := make(map[string]any, len(under))
	for key, value := range under {
		merged[key] = value
	}
	for key, value := range over {
		lower, isMap := merged[key].(map[string]any)
		if upper, both := value.(map[string]any); isMap && both {
			merged[key] = merge(lower, upper)
		} else {
			merged[key] = value
		}
	}
	return merged
}

func values(request Request) (map[string]any, error) {
	merged := map[string]any{}
	for _, file := range request.Values {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		content := map[string]any{}
		if err := yaml.Unmarshal(text, &content); err != nil {
			return nil, fmt.Errorf("failed to parse %s: %w", file, err)
		}
		merged = merge(merged, content)
	}
	if len(request.Overrides) > 0 {
		content := map[string]any{}
		if err := yaml.Unmarshal(request.Overrides, &content); err != nil {
			return nil, fmt.Errorf("failed to parse -: %w", err)
		}
		merged = merge(merged, content)
	}
	return merged, nil
}

// missing names the dependencies of Chart.yaml that the chart does not hold.
func missing(loaded *chart.Chart) error {
	var names []string
required:
	for _, required := range loaded.Metadata.Dependencies {
		for _, held := range loaded.Dependencies() {
			if held.Name() == required.Name {
				continue required
			}
		}
		names = append(names, required.Name)
	}
	if len(names) == 0 {
		return nil
	}
	return fmt.Errorf("found in Chart.yaml, but missing in charts/ directory: %s", strings.Join(names, ", "))
}

func capabilities(request Request) (*chartutil.Capabilities, error) {
	made := chartutil.DefaultCapabilities.Copy()
	version, err := chartutil.ParseKubeVersion(request.KubeVersion)
	if err != nil {
		return nil, fmt.Errorf("invalid kube version '%s': %w", request.KubeVersion, err)
	}
	made.KubeVersion = *version
	made.APIVersions = append(made.APIVersions, request.APIVersions...)
	return made, nil
}

// compiled holds the schemas that were met so far: compiling them takes four fifths of a rendering that does it anew. A
// schema that cannot be compiled without the network is nil.
var compiled = map[string]*jsonschema.Schema{}

// schemaURL is what helm calls a chart's schema.
const schemaURL = "file:///values.schema.json"

func compile(source []byte) *jsonschema.Schema {
	made, met := compiled[string(source)]
	if met {
		return made
	}
	compiler := jsonschema.NewCompiler()
	if document, err := jsonschema.UnmarshalJSON(bytes.NewReader(source)); err == nil && compiler.AddResource(schemaURL, document) == nil {
		made, _ = compiler.Compile(schemaURL)
	}
	compiled[string(source)] = made
	return made
}

// objects are what helm reads from rendered files.
type objects struct {
	hooks     []*release.Hook
	manifests []releaseutil.Manifest
}

// met holds the objects of files that were rendered before: from one rendering to the next most stay as they are, and to
// parse them takes a third of a rendering.
var met = map[string]objects{}

// keep is how many files are held before the memory begins anew: some times as many as a suite renders.
const keep = 8192

// read does what releaseutil.SortManifests does for a rendering, file by file, and puts the objects in the order of kinds.
func read(files map[string]string) (objects, error) {
	var all objects
	for _, name := range slices.Sorted(maps.Keys(files)) {
		key := name + "\x00" + files[name]
		found, known := met[key]
		if !known {
			hooks, manifests, err := releaseutil.SortManifests(map[string]string{name: files[name]}, nil, releaseutil.InstallOrder)
			if err != nil {
				return objects{}, err
			}
			if len(met) >= keep {
				clear(met)
			}
			found = objects{hooks, manifests}
			met[key] = found
		}
		all.hooks = append(all.hooks, found.hooks...)
		all.manifests = append(all.manifests, found.manifests...)
	}
	slices.SortStableFunc(all.hooks, func(one, other *release.Hook) int { return compareKinds(one.Kind, other.Kind) })
	slices.SortStableFunc(all.manifests, func(one, other releaseutil.Manifest) int {
		return compareKinds(one.Head.Kind, other.Head.Kind)
	})
	return all, nil
}

// compareKinds puts kinds in the order in which helm installs them; those it does not know come last, by name.
func compareKinds(one, other string) int {
	first, second := slices.Index(releaseutil.InstallOrder, one), slices.Index(releaseutil.InstallOrder, other)
	switch {
	case first < 0 && second < 0:
		return strings.Compare(one, other)
	case first < 0:
		return 1
	case second < 0:
		return -1
	}
	return first - second
}

// refusal is what the schemas of a chart and of its parts have against values, in helm's words; nothing where they accept.
// Where one cannot be compiled here, known is false: helm may know how to load what it refers to.
func refusal(by *chart.Chart, values map[string]any) (said string, known bool) {
	if by.Schema != nil {
		schema := compile(by.Schema)
		if schema == nil {
			return "", false
		}
		if err := schema.Validate(values); err != nil {
			words := strings.TrimPrefix(err.Error(), "jsonschema validation failed with '"+schemaURL+"#'\n")
			said = by.Name() + ":\n" + words + "\n"
		}
	}
	for _, part := range by.Dependencies() {
		switch given := values[part.Name()].(type) {
		case nil:
		case map[string]any:
			more, known := refusal(part, given)
			if !known {
				return "", false
			}
			said += more
		default:
			return "", false
		}
	}
	return said, true
}

// render does the steps of `helm template --include-crds` in its order, so that it fails at the same one.
func render(request Request, noted *marks) (string, error) {
	known, err := capabilities(request)
	if err != nil {
		return "", err
	}
	given, err := values(request)
	if err != nil {
		return "", err
	}
	loaded, err := loader.Load(request.Chart)
	if err != nil {
		return "", err
	}
	if kind := loaded.Metadata.Type; kind != "" && kind != "application" {
		return "", fmt.Errorf("%s charts are not installable", kind)
	}
	if err := missing(loaded); err != nil {
		return "", err
	}
	if err := chartutil.ProcessDependenciesWithMerge(loaded, given); err != nil {
		return "", err
	}
	options := chartutil.ReleaseOptions{
		Name: request.Release, Namespace: request.Namespace, Revision: 1,
		IsInstall: !request.Upgrade, IsUpgrade: request.Upgrade,
	}
	toRender, err := chartutil.ToRenderValuesWithSchemaValidation(loaded, given, options, known, true)
	if err != nil {
		return "", err
	}
	merged, err := toRender.Table("Values")
	if err != nil {
		return "", err
	}
	refused, certain := refusal(loaded, merged)
	if !certain {
		if err := chartutil.ValidateAgainstSchema(loaded, merged); err != nil {
			refused = err.Error()
		}
	}
	if refused != "" {
		return "", fmt.Errorf("values don't meet the specifications of the schema(s) in the following chart(s):\n%s", refused)
	}
	if wanted := loaded.Metadata.KubeVersion; wanted != "" && !chartutil.IsCompatibleRange(wanted, known.KubeVersion.String()) {
		return "", fmt.Errorf("chart requires kubeVersion: %s which is incompatible with Kubernetes %s", wanted, known.KubeVersion.String())
	}
	files, err := engine.RenderWithClientProvider(loaded, toRender, noted)
	if err != nil {
		return "", err
	}
	for name := range files {
		if path.Base(name) == "NOTES.txt" {
			delete(files, name)
		}
	}
	found, err := read(files)
	if err != nil {
		return "", fmt.Errorf("%w\n\nUse --debug flag to render out invalid YAML", err)
	}
	return text(loaded, found), nil
}

func text(loaded *chart.Chart, found objects) string {
	var body, whole bytes.Buffer
	for _, definition := range loaded.CRDObjects() {
		fmt.Fprintf(&body, "---\n# Source: %s\n%s\n", definition.Filename, definition.File.Data)
	}
	for _, manifest := range found.manifests {
		fmt.Fprintf(&body, "---\n# Source: %s\n%s\n", manifest.Name, manifest.Content)
	}
	fmt.Fprintln(&whole, strings.TrimSpace(body.String()))
	for _, hook := range found.hooks {
		fmt.Fprintf(&whole, "---\n# Source: %s\n%s\n", hook.Path, hook.Manifest)
	}
	return whole.String()
}

func main() {
	log.SetOutput(io.Discard) // helm's warnings, which are no part of its answer
	input := bufio.NewReader(os.Stdin)
	output := json.NewEncoder(os.Stdout)
	for {
		line, err := input.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return
		}
		var request Request
		if err == nil {
			err = json.Unmarshal(line, &request)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		noted := &marks{passed: []string{}}
		answer := Answer{}
		if answer.Output, err = render(request, noted); err != nil {
			answer = Answer{Error: "Error: " + err.Error()}
		}
		answer.Marks = noted.passed
		if err := output.Encode(answer); err != nil {
			os.Exit(1)
		}
	}
}
