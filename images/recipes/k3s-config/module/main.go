// Command k3s-config reads the configuration of K3s before K3s does, as K3s does (pkg/configfilearg), and refuses what K3s would
// misread, wait for without end or not survive. It is called with the folder of the configuration and the role of the node:
//
//	config.yaml, config.yaml.d/*.yaml   K3s' configuration, the later file wins
//	registries.yaml                     its registries, if there are any
//
// and leaves there what scripts want to know:
//
//	server      the URL of an agent's server, without a path
//	node-name   the name of the node, if the configuration gives one
//
// What is wrong goes to standard error, with the line. Values are not repeated, since they may be secret.
package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	yaml2 "gopkg.in/yaml.v2" // what K3s reads with: its values
	yaml3 "gopkg.in/yaml.v3" // the same syntax, with the line of each value
)

// refusal is why K3s must not start, and what to do.
type refusal struct{ what, fix string }

func (r *refusal) Error() string { return r.what }

func refuse(fix, format string, args ...any) error {
	return &refusal{fmt.Sprintf(format, args...), fix}
}

const (
	form     = "write one setting a line, such as node-name: rack-1 (docs.k3s.io/installation/configuration)"
	aServer  = "give this node the credential k3s.config with a line: server: https://SERVER:6443"
	regsForm = "docs.k3s.io/installation/private-registry shows how it is written"
)

// setting is one key of one file.
type setting struct {
	key    string // as K3s' flag is called, without the + that appends
	append bool
	value  any // of yaml.v2: a scalar, or a list of them
	where  string
}

// aliases are short names of flags of K3s (pkg/cli/cmds) that matter here.
var aliases = map[string]string{"s": "server", "t": "token"}

// given says by which name a person knows a file.
func given(file string) string {
	switch filepath.Base(file) {
	case "60-node.yaml":
		return "the credential k3s.config"
	case "registries.yaml":
		return "the credential k3s.registries"
	}
	return "K3s' configuration " + filepath.Base(file)
}

// documents parses all of a text.
func documents(text []byte) (found []*yaml3.Node, err error) {
	defer func() {
		if panicked := recover(); panicked != nil {
			err = fmt.Errorf("%v", panicked)
		}
	}()
	decoder := yaml3.NewDecoder(bytes.NewReader(text))
	for {
		node := new(yaml3.Node)
		if err := decoder.Decode(node); errors.Is(err, io.EOF) {
			return found, nil
		} else if err != nil {
			return found, err
		}
		found = append(found, node)
	}
}

var libraryLine = regexp.MustCompile(`^(?:yaml: )?(?:line ([0-9]+): )?`)

// syntax is the refusal of what does not parse. The parser's own line is that of a context, one too small, or missing; what is
// wrong begins behind the longest beginning of the text that parses.
func syntax(name string, text []byte, err error) error {
	said := err.Error()
	line := "1"
	if match := libraryLine.FindStringSubmatch(said); match[1] != "" {
		line = match[1]
	}
	said = libraryLine.ReplaceAllString(said, "")
	lines := bytes.SplitAfter(text, []byte("\n"))
	utf16 := bytes.HasPrefix(text, []byte("\xff\xfe")) || bytes.HasPrefix(text, []byte("\xfe\xff"))
	if len(lines) <= 2000 && len(text) <= 64<<10 && !utf16 {
		for good := len(lines) - 1; good >= 0; good-- {
			if _, err := documents(bytes.Join(lines[:good], nil)); err == nil {
				line = strconv.Itoa(good + 1)
				break
			}
		}
	}
	fix := form
	if strings.Contains(said, "tab") || strings.Contains(said, "cannot start any token") {
		fix = "YAML is indented by blanks, never by tabs, and what begins with @, %, ` or { goes into quotes"
	}
	return refuse(fix, "%s is not YAML: line %s: %s", name, line, quoted(said))
}

// values are parts of a message of the YAML library that repeat the file.
var values = regexp.MustCompile("`[^`]*`")

func quoted(said string) string {
	said = values.ReplaceAllString(said, "a value")
	return strings.Trim(strconv.Quote(said), `"`)
}

// only is the root of the only document of a text; nil if there is nothing in it.
func only(name string, text []byte) (*yaml3.Node, error) {
	found, err := documents(text)
	if err != nil {
		return nil, syntax(name, text, err)
	}
	var first *yaml3.Node
	for i, document := range found {
		if len(document.Content) == 0 {
			continue
		}
		root := document.Content[0]
		if i == 0 {
			first = root
		} else if root.Tag != "!!null" {
			return nil, refuse("remove the line --- and what is not wanted",
				"%s has a second document at line %d, and K3s reads only the first", name, root.Line)
		}
	}
	if first == nil || first.Tag == "!!null" {
		return nil, nil
	}
	if first.Kind != yaml3.MappingNode {
		return nil, refuse("a colon is followed by a blank; "+form, "%s has %s at line %d where K3s wants `key: value`",
			name, kind(first), first.Line)
	}
	return first, nil
}

func kind(node *yaml3.Node) string {
	switch node.Kind {
	case yaml3.MappingNode:
		return "a mapping"
	case yaml3.SequenceNode:
		return "a list"
	}
	return "a single value"
}

// behind is the node itself, or what an alias stands for.
func behind(node *yaml3.Node) *yaml3.Node {
	for node.Kind == yaml3.AliasNode {
		node = node.Alias
	}
	return node
}

// text is what K3s makes of a value (wrangler's convert.ToString).
func text(value any) string {
	switch value := value.(type) {
	case nil:
		return ""
	case time.Time:
		return value.Format(time.RFC3339)
	case []any:
		if len(value) == 0 {
			return ""
		}
		return text(value[0])
	}
	return strings.TrimSpace(fmt.Sprint(value))
}

// settings reads one file of K3s' configuration.
func settings(name string, bytes []byte) ([]setting, error) {
	root, err := only(name, bytes)
	if root == nil || err != nil {
		return nil, err
	}
	shown := map[string]int{}
	for i := 0; i+1 < len(root.Content); i += 2 {
		key, value := root.Content[i], behind(root.Content[i+1])
		line := root.Content[i].Line
		if key.Tag == "!!merge" {
			return nil, refuse("write out what it stands for", "%s: line %d: K3s does not know the merge key <<", name, line)
		}
		if key = behind(key); key.Kind != yaml3.ScalarNode || key.Value == "" {
			return nil, refuse(form, "%s: line %d: a key is %s", name, line, map[bool]string{true: "empty", false: kind(key)}[key.Kind == yaml3.ScalarNode])
		}
		shows := strconv.Quote(key.Value)
		if strings.HasPrefix(key.Value, "-") {
			return nil, refuse("write it without the dashes before it", "%s: line %d: the key %s begins with a dash", name, line, shows)
		}
		bare := strings.TrimSuffix(key.Value, "+")
		canon := key.Value
		if long, ok := aliases[bare]; ok {
			canon = long + key.Value[len(bare):]
		}
		if before, ok := shown[canon]; ok {
			return nil, refuse("keep one of them; several values of one key are a list", "%s: line %d: the key %s is there twice, first at line %d; K3s would use one of them",
				name, line, shows, before)
		}
		shown[canon] = line
		elements := []*yaml3.Node{value}
		if value.Kind == yaml3.SequenceNode {
			elements = value.Content
		}
		for _, element := range elements {
			element, at := behind(element), element.Line
			if element.Kind != yaml3.ScalarNode {
				return nil, refuse("a setting is one value or a list of values; one with a colon goes into quotes, as in - \"max-pods=110\"",
					"%s: line %d: %s has %s in it", name, max(at, line), shows, kind(element))
			}
		}
	}
	var items yaml2.MapSlice
	if err := yaml2.Unmarshal(bytes, &items); err != nil {
		return nil, syntax(name, bytes, err)
	}
	if len(items) != len(root.Content)/2 {
		return nil, refuse(form, "%s: K3s reads %d settings of it where there are %d", name, len(items), len(root.Content)/2)
	}
	var found []setting
	for i, item := range items {
		key := text(item.Key)
		bare := strings.TrimSuffix(key, "+")
		canon := bare
		if long, ok := aliases[bare]; ok {
			canon = long
		}
		where := fmt.Sprintf("%s: line %d", name, root.Content[2*i].Line)
		found = append(found, setting{canon, bare != key, item.Value, where})
	}
	return found, nil
}

// list is what K3s appends to or appends (toSlice of its parser).
func list(value any) []any {
	if list, ok := value.([]any); ok {
		return list
	}
	if value := text(value); value != "" {
		return []any{value}
	}
	return nil
}

// merged lays the files of a folder over each other.
func merged(folder string) (map[string]setting, error) {
	files, err := filepath.Glob(filepath.Join(folder, "config.yaml.d", "*"))
	if err != nil {
		return nil, err
	}
	slices.Sort(files)
	all := map[string]setting{}
	for _, file := range append([]string{filepath.Join(folder, "config.yaml")}, files...) {
		lower := strings.ToLower(file)
		if !strings.HasSuffix(lower, ".yaml") && !strings.HasSuffix(lower, ".yml") {
			continue
		}
		bytes, err := os.ReadFile(file)
		if errors.Is(err, os.ErrNotExist) {
			continue
		} else if err != nil {
			return nil, err
		}
		found, err := settings(given(file), bytes)
		if err != nil {
			return nil, err
		}
		for _, setting := range found {
			if setting.key == "token" || setting.key == "agent-token" {
				return nil, refuse("give it as the credential k3s.token",
					"%s holds a token (%s), which K3s would show to whoever may read its configuration", setting.where, setting.key)
			}
			if old, ok := all[setting.key]; ok && setting.append {
				setting.value = append(slices.Clone(list(old.value)), list(setting.value)...)
			}
			all[setting.key] = setting
		}
	}
	return all, nil
}

// server is the URL of a server as scripts ask it: scheme, host and port.
func server(setting setting) (string, error) {
	values := list(setting.value)
	if len(values) == 0 {
		return "", refuse(aServer, "%s: `server` has no value", setting.where)
	}
	if len(values) > 1 {
		return "", refuse("name one server; it tells its agents of the others", "%s: `server` has %d values and takes one", setting.where, len(values))
	}
	value := text(values[0])
	shows := strconv.Quote(value)
	if strings.Contains(value, "@") {
		shows = "not shown, for it may hold a password"
	}
	bad := func(why string) error {
		return refuse("write it as https://SERVER:6443", "%s: the server of this node is %s: %s", setting.where, shows, why)
	}
	parsed, err := url.Parse(value)
	var reason *url.Error
	switch {
	case errors.As(err, &reason):
		why := reason.Err.Error()
		if strings.Contains(value, "@") {
			why = "it is not a URL"
		}
		return "", bad(why)
	case err != nil:
		return "", bad("it is not a URL")
	case parsed.Scheme != "https":
		return "", bad("it must begin with https://")
	case parsed.User != nil:
		return "", bad("a URL with a user is not for K3s")
	case parsed.Hostname() == "":
		return "", bad("it names no host")
	case strings.ContainsFunc(parsed.Host, func(r rune) bool { return r <= ' ' || r > '~' }):
		return "", bad("its host has characters that no host name has")
	}
	if port := parsed.Port(); port != "" {
		if number, err := strconv.Atoi(port); err != nil || number < 1 || number > 65535 {
			return "", bad("its port is not between 1 and 65535")
		}
	} else if strings.HasSuffix(parsed.Host, ":") {
		return "", bad("it has a colon without a port")
	}
	host := parsed.Hostname()
	if strings.Trim(host, "0123456789.") == "" && net.ParseIP(host) == nil {
		return "", bad("its host is not an address")
	}
	return "https://" + parsed.Host, nil
}

// The file of registries, as K3s knows it (rancher/wharfie, pkg/registries).
type (
	registries struct {
		Mirrors map[string]mirror         `yaml:"mirrors"`
		Configs map[string]registryConfig `yaml:"configs"`
		Auths   map[string]auth           `yaml:"auths"`
	}
	mirror struct {
		Endpoints []string          `yaml:"endpoint"`
		Rewrites  map[string]string `yaml:"rewrite"`
	}
	registryConfig struct {
		Auth *auth `yaml:"auth"`
		TLS  *struct {
			CAFile             string `yaml:"ca_file"`
			CertFile           string `yaml:"cert_file"`
			KeyFile            string `yaml:"key_file"`
			InsecureSkipVerify bool   `yaml:"insecure_skip_verify"`
		} `yaml:"tls"`
	}
	auth struct {
		Username      string `yaml:"username"`
		Password      string `yaml:"password"`
		Auth          string `yaml:"auth"`
		IdentityToken string `yaml:"identity_token"`
	}
)

// inType is how the YAML library names the place of an unknown key.
var inType = regexp.MustCompile(` in type .*$`)

// checkRegistries refuses what K3s could not read, and warns of keys that it would pass over.
func checkRegistries(file string, warn io.Writer) error {
	bytes, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	name := given(file)
	if root, err := only(name, bytes); root == nil || err != nil {
		return err
	}
	var wrong *yaml2.TypeError
	if err := yaml2.Unmarshal(bytes, &registries{}); errors.As(err, &wrong) {
		return refuse(regsForm, "%s: %s", name, quoted(inType.ReplaceAllString(wrong.Errors[0], "")))
	} else if err != nil {
		return syntax(name, bytes, err)
	}
	if err := yaml2.UnmarshalStrict(bytes, &registries{}); errors.As(err, &wrong) {
		for _, each := range wrong.Errors {
			fmt.Fprintf(warn, "k3s: %s: %s; K3s passes over it\n  -> %s\n", name, quoted(inType.ReplaceAllString(each, "")), regsForm)
		}
	}
	return nil
}

// run judges the configuration in a folder, and leaves there what scripts want to know.
func run(folder, role string, warn io.Writer) error {
	all, err := merged(folder)
	if err != nil {
		return err
	}
	if err := checkRegistries(filepath.Join(folder, "registries.yaml"), warn); err != nil {
		return err
	}
	leave := func(name, value string) error {
		return os.WriteFile(filepath.Join(folder, name), []byte(value+"\n"), 0o600)
	}
	at, ok := all["server"]
	if !ok && role == "agent" {
		return refuse(aServer, "this agent knows no server")
	}
	if ok {
		url, err := server(at)
		if err != nil {
			return err
		}
		if role == "agent" {
			if err := leave("server", url); err != nil {
				return err
			}
		}
	}
	if setting, ok := all["node-name"]; ok {
		if name := strings.ToLower(text(setting.value)); name != "" {
			// It goes into a header of HTTP.
			if strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r > '~' }) {
				return refuse("a name of a node has letters a-z, digits, - and .", "%s: the name of this node is %s", setting.where, strconv.Quote(name))
			}
			return leave("node-name", name)
		}
	}
	return nil
}

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: k3s-config FOLDER server|agent")
		os.Exit(2)
	}
	err := run(os.Args[1], os.Args[2], os.Stderr)
	if err == nil {
		return
	}
	fmt.Fprintln(os.Stderr, "k3s does not start: "+err.Error())
	var refused *refusal
	if errors.As(err, &refused) {
		fmt.Fprintln(os.Stderr, "  -> "+refused.fix)
	}
	os.Exit(1)
}
