// Command flannel is the CNI plugin of that name: it hands a pod's network on to another plugin, bridge if nothing else is said, with the
// addresses that flannel gave this node.
//
//	K3s' conflist {type: flannel, delegate: {...}}     stdin
//	  + /run/flannel/subnet.env                        what flanneld leased for this node
//	  = conf of the delegate                           kept in dataDir/CONTAINER, so that DEL undoes what ADD did
//
// It says and does what flannel's own plugin is documented to (flannel, Documentation/configuration.md and the CNI specification 1.1).
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
)

const (
	defaultSubnetFile = "/run/flannel/subnet.env"
	defaultDataDir    = "/var/lib/cni/flannel"
)

// about is what `flannel` without an order says of itself.
var about = "CNI plugin flannel"

// object is a JSON object whose keys are the delegate's business.
type object map[string]any

// config is what the runtime gives on stdin.
type config struct {
	types.NetConf
	SubnetFile    string `json:"subnetFile"`
	DataDir       string `json:"dataDir"`
	Delegate      object `json:"delegate"`
	RuntimeConfig object `json:"runtimeConfig,omitempty"`
}

// subnet is what flanneld wrote.
type subnet struct {
	networks []*net.IPNet // of all nodes
	own      *net.IPNet   // of this node
	ownSix   *net.IPNet
	mtu      int
	masq     bool // flanneld translates addresses itself
}

func parseConfig(stdin []byte) (*config, error) {
	conf := &config{SubnetFile: defaultSubnetFile, DataDir: defaultDataDir}
	if err := json.Unmarshal(stdin, conf); err != nil {
		return nil, fmt.Errorf("the network configuration cannot be read: %w", err)
	}
	if conf.Delegate == nil {
		conf.Delegate = object{}
	}
	if kind, ok := conf.Delegate["type"]; ok {
		if _, isText := kind.(string); !isText {
			return nil, errors.New("`delegate.type` must be a text")
		}
	}
	for _, key := range []string{"name", "ipam"} {
		if _, ok := conf.Delegate[key]; ok {
			return nil, fmt.Errorf("`delegate.%s` is not yours to set: this plugin does", key)
		}
	}
	return conf, nil
}

// readSubnet reads KEY=VALUE lines. A file without a subnet or an MTU is no lease.
func readSubnet(path string) (*subnet, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("flannel has no lease for this node yet: %w", err)
	}
	defer file.Close()
	lease := &subnet{}
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		key, value, ok := strings.Cut(strings.TrimSpace(lines.Text()), "=")
		if !ok || value == "" {
			continue
		}
		if err := lease.set(key, value); err != nil {
			return nil, fmt.Errorf("%s: %s: %w", path, key, err)
		}
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	if lease.own == nil && lease.ownSix == nil || lease.mtu == 0 {
		return nil, fmt.Errorf("%s names no subnet or no MTU", path)
	}
	return lease, nil
}

func (lease *subnet) set(key, value string) error {
	var err error
	switch key {
	case "FLANNEL_NETWORK", "FLANNEL_IPV6_NETWORK":
		// Several are separated by commas.
		for _, one := range strings.Split(value, ",") {
			_, network, wrong := net.ParseCIDR(one)
			if wrong != nil {
				return wrong
			}
			lease.networks = append(lease.networks, network)
		}
	case "FLANNEL_SUBNET":
		_, lease.own, err = net.ParseCIDR(value)
	case "FLANNEL_IPV6_SUBNET":
		_, lease.ownSix, err = net.ParseCIDR(value)
	case "FLANNEL_MTU":
		lease.mtu, err = strconv.Atoi(value)
		if err == nil && lease.mtu <= 0 {
			err = errors.New("not positive")
		}
	case "FLANNEL_IPMASQ":
		lease.masq, err = strconv.ParseBool(value)
	}
	return err
}

// delegated is the delegate's configuration: what the user wrote, and for the rest what the lease says.
func delegated(conf *config, lease *subnet) object {
	out := object{}
	for key, value := range conf.Delegate {
		out[key] = value
	}
	or := func(key string, value any) {
		if _, ok := out[key]; !ok {
			out[key] = value
		}
	}
	out["name"] = conf.Name
	or("type", "bridge")
	or("ipMasq", !lease.masq)
	or("mtu", lease.mtu)
	if out["type"] == "bridge" {
		or("isGateway", true)
	}
	if conf.CNIVersion != "" {
		out["cniVersion"] = conf.CNIVersion
	}
	if conf.RuntimeConfig != nil {
		out["runtimeConfig"] = conf.RuntimeConfig
	}
	ranges := []any{}
	for _, own := range []*net.IPNet{lease.own, lease.ownSix} {
		if own != nil {
			ranges = append(ranges, []any{object{"subnet": own.String()}})
		}
	}
	routes := []any{}
	for _, network := range lease.networks {
		routes = append(routes, object{"dst": network.String()})
	}
	out["ipam"] = object{"type": "host-local", "ranges": ranges, "routes": routes}
	return out
}

// kept is where the delegate's configuration for a container lies. The runtime names containers, and is not trusted with paths.
func kept(dir, container string) (string, error) {
	if container == "" || container != filepath.Base(container) || container == "." || container == ".." {
		return "", fmt.Errorf("`%s` is no name of a container", container)
	}
	return filepath.Join(dir, container), nil
}

// keep writes whole or not at all: a node can lose power.
func keep(dir, container string, bytes []byte) error {
	path, err := kept(dir, container)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	temp, err := os.CreateTemp(dir, ".new-")
	if err != nil {
		return err
	}
	defer os.Remove(temp.Name())
	if _, err = temp.Write(bytes); err == nil {
		err = temp.Sync()
	}
	if closed := temp.Close(); err == nil {
		err = closed
	}
	if err == nil {
		err = os.Rename(temp.Name(), path)
	}
	return err
}

func kindOf(bytes []byte) (string, error) {
	var of struct{ Type string }
	if err := json.Unmarshal(bytes, &of); err != nil || of.Type == "" {
		return "", errors.New("the kept configuration of the delegate is damaged")
	}
	return of.Type, nil
}

func add(args *skel.CmdArgs) error {
	conf, err := parseConfig(args.StdinData)
	if err != nil {
		return err
	}
	lease, err := readSubnet(conf.SubnetFile)
	if err != nil {
		return err
	}
	delegate := delegated(conf, lease)
	bytes, err := json.Marshal(delegate)
	if err != nil {
		return err
	}
	if err := keep(conf.DataDir, args.ContainerID, bytes); err != nil {
		return err
	}
	result, err := invoke.DelegateAdd(context.Background(), delegate["type"].(string), bytes, nil)
	if err != nil {
		return err
	}
	return result.Print()
}

// del undoes an add. What was never added, or is gone already, is undone.
func del(args *skel.CmdArgs) error {
	conf, err := parseConfig(args.StdinData)
	if err != nil {
		return err
	}
	path, err := kept(conf.DataDir, args.ContainerID)
	if err != nil {
		return err
	}
	bytes, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	kind, err := kindOf(bytes)
	if err == nil {
		err = invoke.DelegateDel(context.Background(), kind, bytes, nil)
	}
	if err != nil {
		return err
	}
	// Only now: an end that failed is tried again.
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func check(args *skel.CmdArgs) error {
	conf, err := parseConfig(args.StdinData)
	if err != nil {
		return err
	}
	path, err := kept(conf.DataDir, args.ContainerID)
	if err != nil {
		return err
	}
	bytes, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	kind, err := kindOf(bytes)
	if err != nil {
		return err
	}
	// The delegate compares with the result of its ADD, which the runtime gave to this plugin.
	var withResult, given object
	if err := json.Unmarshal(bytes, &withResult); err != nil {
		return err
	}
	if err := json.Unmarshal(args.StdinData, &given); err != nil {
		return err
	}
	if previous, ok := given["prevResult"]; ok {
		withResult["prevResult"] = previous
	}
	if bytes, err = json.Marshal(withResult); err != nil {
		return err
	}
	return invoke.DelegateCheck(context.Background(), kind, bytes, nil)
}

func main() {
	skel.PluginMainFuncs(skel.CNIFuncs{Add: add, Check: check, Del: del}, version.All, about)
}
