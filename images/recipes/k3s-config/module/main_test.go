package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// place is a folder with the configuration of an image and a credential.
func place(t *testing.T, credential string) string {
	t.Helper()
	folder := t.TempDir()
	for name, text := range map[string]string{
		"config.yaml":                 "# From the image.\ncluster-dns: \"10.43.0.10\"\n",
		"config.yaml.d/50-token.yaml": "token-file: \"/run/kiln/k3s/token\"\n",
		"config.yaml.d/60-node.yaml":  credential,
	} {
		path := filepath.Join(folder, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return folder
}

func TestAServerIsFoundHoweverItIsWritten(t *testing.T) {
	const want = "https://192.168.50.100:6443"
	for _, text := range []string{
		"server: https://192.168.50.100:6443",
		"server: https://192.168.50.100:6443 # the NUC\n",
		"server: https://192.168.50.100:6443\r\nnode-name: a\r\n",
		"\"server\": \"https://192.168.50.100:6443\"\n",
		"'server': 'https://192.168.50.100:6443'\n",
		"server : https://192.168.50.100:6443\n",
		"server:\n  https://192.168.50.100:6443\n",
		"server: >-\n  https://192.168.50.100:6443\n",
		"server: |\n  https://192.168.50.100:6443\n",
		"? server\n: https://192.168.50.100:6443\n",
		"{\"server\": \"https://192.168.50.100:6443\", \"node-label\": [\"a=b\"]}",
		"{\n\t\"server\":\t\"https://192.168.50.100:6443\"\n}\n",
		"{server: https://192.168.50.100:6443}\n",
		"# server: https://10.0.0.9:6443\nserver: https://192.168.50.100:6443\n",
		"node-label:\n  - server=x\n  - \"server: y\"\nserver: https://192.168.50.100:6443\n",
		"\ufeffserver: https://192.168.50.100:6443\n",
		"---\nserver: https://192.168.50.100:6443\n...\n",
		"---\nserver: https://192.168.50.100:6443\n---\n",
		"%YAML 1.1\n---\nserver: !!str https://192.168.50.100:6443\n",
		"node-label: &x [a=b]\nnode-taint: *x\nserver: https://192.168.50.100:6443\n",
		"with-node-id: &u \"https://192.168.50.100:6443\"\nserver: *u\n",
		"server: [https://192.168.50.100:6443]\n",
		"s: https://192.168.50.100:6443\n",
		"server: https://192.168.50.100:6443/\n",
		"server: HTTPS://192.168.50.100:6443\n",
	} {
		folder := place(t, text)
		if err := run(folder, "agent", os.Stderr); err != nil {
			t.Errorf("%q: %v", text, err)
			continue
		}
		if got, _ := os.ReadFile(filepath.Join(folder, "server")); string(got) != want+"\n" {
			t.Errorf("%q: %q", text, got)
		}
	}
}

func TestWhatCannotBeMeantIsRefusedWithItsLine(t *testing.T) {
	for text, words := range map[string]string{
		"":                      "knows no server",
		"# nothing\n":           "knows no server",
		"---\n":                 "knows no server",
		"sever: https://a:6443": "knows no server",
		"server:\n":             "line 1: `server` has no value",
		"a: 1\nserver: \"\"\n":  "line 2: `server` has no value",
		"server: []\n":          "line 1: `server` has no value",
		"server:\n- https://a:6443\n- https://b:6443\n":                  "line 1: `server` has 2 values",
		"server:\n  url: https://a:6443\n":                               "line 2: \"server\" has a mapping in it",
		"kubelet-arg:\n- max-pods: 110\nserver: https://a:6443\n":        "line 2: \"kubelet-arg\" has a mapping in it",
		"kubelet-arg: [[a]]\n":                                           "line 1: \"kubelet-arg\" has a list in it",
		"server:https://a:6443\n":                                        "a single value at line 1",
		"- server: https://a:6443\n":                                     "a list at line 1",
		"server: https://a:6443\n\nserver: https://b:6443\n":             "line 3: the key \"server\" is there twice, first at line 1",
		"server: https://a:6443\ns: https://b:6443\n":                    "line 2: the key \"s\" is there twice",
		"server: https://a:6443\n---\nnode-name: b\n":                    "a second document at line 3",
		"node-name: a\n\tserver: https://a:6443\n":                       "line 2: ",
		"node-name: a\nkubelet-arg:\n\t- a=b\nserver: https://a\n":       "line 3: ",
		"\tserver: https://a:6443\n":                                     "line 1: ",
		"node-name: a\nserver: \"https://a:6443\nx: y\n":                 "line 2: ",
		"node-name: a\nnode-label: [a=b\nserver: https://a:6443\n":       "line 2: ",
		"node-name: a\n server: https://a:6443\n":                        "line 2: ",
		"server: @home\n":                                                "line 1: ",
		"a: b\nserver: *home\n":                                          "line 2: ",
		"base: &b {a: b}\n":                                              "line 1: \"base\" has a mapping",
		"<<: {server: https://a:6443}\n":                                 "line 1: K3s does not know the merge key",
		"--server: https://a:6443\n":                                     "line 1: the key \"--server\" begins with a dash",
		"server: http://a:6443\n":                                        "line 1: the server of this node is \"http://a:6443\"",
		"server: a:6443\n":                                               "must begin with https://",
		"server: https://a:6443 the NUC\n":                               "line 1: the server of this node is",
		"server: \"https:\\/\\/a:6443\"\n":                               "line 1: found unknown escape character",
		"server: https://a:65536\n":                                      "port",
		"server: https://:6443\n":                                        "names no host",
		"server: https://\n":                                             "names no host",
		"server: https://192.168.50.300:6443\n":                          "not an address",
		"server: https://u:hunter2@a:6443\n":                             "not shown",
		"server: https://u:hunter2@a:x\n":                                "not a URL",
		"server: https://a:6443\ntoken: hunter2\n":                       "line 2 holds a token (token)",
		"server: https://a:6443\n\"token\" : hunter2\n":                  "line 2 holds a token",
		"server: https://a:6443\nt: hunter2\n":                           "line 2 holds a token",
		"server: https://a:6443\ntoken+: hunter2\n":                      "line 2 holds a token",
		"{\"server\": \"https://a:6443\", \"agent-token\": \"hunter2\"}": "line 1 holds a token (agent-token)",
		"server: https://a:6443\nnode-name: \"a\\nb\"\n":                 "line 2: the name of this node is \"a\\nb\"",
		"server: \xff\n":                                                 "line 1: ",
		"a: b\nserver: \x01\n":                                           "line 2: ",
	} {
		err := run(place(t, text), "agent", os.Stderr)
		var refused *refusal
		if !errors.As(err, &refused) || refused.fix == "" {
			t.Errorf("%q: %v", text, err)
			continue
		}
		if said := refused.what; !strings.Contains(said, words) || strings.Contains(said+refused.fix, "hunter2") ||
			strings.ContainsFunc(said, func(r rune) bool { return r < ' ' }) {
			t.Errorf("%q: %s", text, said)
		}
	}
}

func TestFilesAreLaidOverEachOtherAsK3sDoesIt(t *testing.T) {
	folder := place(t, "cluster-dns+: 10.43.0.11\nnode-name: Rack-1\nkubelet-arg: a=b\n")
	if err := os.WriteFile(filepath.Join(folder, "config.yaml.d/70-more.yml"), []byte("kubelet-arg+: [c=d]\nnode-name: RACK-2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	all, err := merged(folder)
	if err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]string{"cluster-dns": "10.43.0.10 10.43.0.11", "kubelet-arg": "a=b c=d", "node-name": "RACK-2"} {
		var got []string
		for _, value := range list(all[key].value) {
			got = append(got, text(value))
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%s: %v", key, got)
		}
	}
	if err := run(folder, "server", os.Stderr); err != nil {
		t.Fatal(err)
	}
	if name, _ := os.ReadFile(filepath.Join(folder, "node-name")); string(name) != "rack-2\n" {
		t.Errorf("%q", name)
	}
	if _, err := os.Stat(filepath.Join(folder, "server")); err == nil {
		t.Error("a server asks nobody whether it may join")
	}
}

func TestRegistriesThatK3sCannotReadAreRefused(t *testing.T) {
	for text, words := range map[string]string{
		"mirrors:\n  docker.io:\n    endpoint:\n    - https://m\n": "",
		"":                           "",
		"mirrors: [a]\n":             "line 1: ",
		"mirrors:\n\tdocker.io: x\n": "line 2: ",
		"configs:\n  r:\n    auth:\n      password: [hunter2]\n": "line 4: ",
		"configs:\n  r:\n    auth: hunter2\n":                    "line 3: ",
	} {
		folder := place(t, "")
		if err := os.WriteFile(filepath.Join(folder, "registries.yaml"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		err := run(folder, "server", os.Stderr)
		if (err == nil) != (words == "") || err != nil && (!strings.Contains(err.Error(), words) || strings.Contains(err.Error(), "hunter2")) {
			t.Errorf("%q: %v", text, err)
		}
	}
	folder := place(t, "")
	if err := os.WriteFile(filepath.Join(folder, "registries.yaml"), []byte("mirrors: {}\nmirror: {}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var said strings.Builder
	if err := run(folder, "server", &said); err != nil || !strings.Contains(said.String(), "line 2: field mirror not found; K3s passes over it") {
		t.Errorf("%v: %s", err, &said)
	}
}
