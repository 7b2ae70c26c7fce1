package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/skel"
)

// place is a folder with a lease and a delegate: a shell script that writes down how it was called.
func place(t *testing.T, lease string) (dir, conf string) {
	t.Helper()
	dir = t.TempDir()
	write := func(name, text string, mode os.FileMode) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), mode); err != nil {
			t.Fatal(err)
		}
	}
	write("subnet.env", lease, 0o644)
	write("bridge", "#!/bin/sh\necho \"$CNI_COMMAND\" >>"+dir+"/calls\ncat >"+dir+"/stdin\n[ \"$CNI_COMMAND\" != ADD ] || echo '{\"cniVersion\":\"1.0.0\"}'\n", 0o755)
	t.Setenv("CNI_PATH", dir)
	t.Setenv("CNI_CONTAINERID", "c1")
	t.Setenv("CNI_NETNS", "/proc/self/ns/net")
	t.Setenv("CNI_IFNAME", "eth0")
	conf = `{"cniVersion":"1.0.0","name":"cbr0","type":"flannel","subnetFile":"` + dir + `/subnet.env","dataDir":"` + dir + `/data",` +
		`"delegate":{"hairpinMode":true,"forceAddress":true,"isDefaultGateway":true},"runtimeConfig":{"mac":"x"}}`
	return dir, conf
}

const lease = "FLANNEL_NETWORK=10.42.0.0/16\nFLANNEL_SUBNET=10.42.2.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"

func TestTheDelegateGetsTheLeaseAndWhatTheUserWrote(t *testing.T) {
	dir, text := place(t, lease)
	conf, err := parseConfig([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	of, err := readSubnet(filepath.Join(dir, "subnet.env"))
	if err != nil {
		t.Fatal(err)
	}
	got, _ := json.Marshal(delegated(conf, of))
	want := `{"cniVersion":"1.0.0","forceAddress":true,"hairpinMode":true,"ipMasq":false,"ipam":{"ranges":[[{"subnet":"10.42.2.0/24"}]],` +
		`"routes":[{"dst":"10.42.0.0/16"}],"type":"host-local"},"isDefaultGateway":true,"isGateway":true,"mtu":1450,"name":"cbr0",` +
		`"runtimeConfig":{"mac":"x"},"type":"bridge"}`
	if string(got) != want {
		t.Fatalf("got  %s\nwant %s", got, want)
	}
}

func TestWhatWasAddedIsDeletedOnce(t *testing.T) {
	dir, text := place(t, lease)
	args := &skel.CmdArgs{ContainerID: "c1", StdinData: []byte(text)}
	calls := func() string {
		bytes, _ := os.ReadFile(filepath.Join(dir, "calls"))
		return strings.ReplaceAll(strings.TrimSpace(string(bytes)), "\n", " ")
	}
	t.Setenv("CNI_COMMAND", "ADD")
	if err := add(args); err != nil {
		t.Fatal(err)
	}
	// A new lease is nothing to the containers of the old one.
	if err := os.Remove(filepath.Join(dir, "subnet.env")); err != nil {
		t.Fatal(err)
	}
	t.Setenv("CNI_COMMAND", "CHECK")
	if err := check(args); err != nil {
		t.Fatal(err)
	}
	t.Setenv("CNI_COMMAND", "DEL")
	for range 2 {
		if err := del(args); err != nil {
			t.Fatal(err)
		}
	}
	if got := calls(); got != "ADD CHECK DEL" {
		t.Fatalf("called: %s", got)
	}
	if err := add(args); err == nil || !strings.Contains(err.Error(), "no lease") {
		t.Fatalf("without a lease: %v", err)
	}
}

func TestWrongInputIsRefused(t *testing.T) {
	for _, text := range []string{"", "[]", `{"delegate":3}`, `{"delegate":{"type":1}}`, `{"delegate":{"ipam":{}}}`, `{"delegate":{"name":"x"}}`} {
		if _, err := parseConfig([]byte(text)); err == nil {
			t.Errorf("%s was taken", text)
		}
	}
	for _, text := range []string{"", "FLANNEL_SUBNET=10.42.2.1/24\n", "FLANNEL_MTU=1450\n", "FLANNEL_SUBNET=x\nFLANNEL_MTU=1\n", "FLANNEL_SUBNET=10.0.0.0/8\nFLANNEL_MTU=-1\n"} {
		dir, _ := place(t, text)
		if _, err := readSubnet(filepath.Join(dir, "subnet.env")); err == nil {
			t.Errorf("%q was taken", text)
		}
	}
	for _, container := range []string{"", ".", "..", "a/b", "../x", "/etc/passwd"} {
		if _, err := kept("/d", container); err == nil {
			t.Errorf("%q was taken", container)
		}
	}
}
