// Command k3s is K3s: one program that is server, agent and their tools, made of K3s' own packages. What it does is decided by the name
// it is called by (containerd, kubectl, crictl, ctr: links to it) or else by its first argument.
package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	"github.com/docker/docker/pkg/reexec"
	"github.com/k3s-io/k3s/pkg/cli/agent"
	"github.com/k3s-io/k3s/pkg/cli/cert"
	"github.com/k3s-io/k3s/pkg/cli/cmds"
	"github.com/k3s-io/k3s/pkg/cli/crictl"
	"github.com/k3s-io/k3s/pkg/cli/ctr"
	"github.com/k3s-io/k3s/pkg/cli/etcdsnapshot"
	"github.com/k3s-io/k3s/pkg/cli/kubectl"
	"github.com/k3s-io/k3s/pkg/cli/secretsencrypt"
	"github.com/k3s-io/k3s/pkg/cli/server"
	"github.com/k3s-io/k3s/pkg/cli/token"
	"github.com/k3s-io/k3s/pkg/configfilearg"
	"github.com/k3s-io/k3s/pkg/containerd"
	ctrtool "github.com/k3s-io/k3s/pkg/ctr"
	kubectltool "github.com/k3s-io/k3s/pkg/kubectl"
	"github.com/sirupsen/logrus"
	"github.com/urfave/cli/v2"
	crictltool "sigs.k8s.io/cri-tools/cmd/crictl"
)

// tools are the programs that this one becomes when it is called by their name. K3s starts containerd that way.
var tools = map[string]func(){
	"containerd": containerd.Main,
	"crictl":     crictltool.Main,
	"ctr":        ctrtool.Main,
	"kubectl":    kubectltool.Main,
}

// commands are what `k3s --help` lists. etcd's snapshots are among them only because K3s' own documentation refers to them.
func commands() []*cli.Command {
	return []*cli.Command{
		cmds.NewServerCommand(server.Run),
		cmds.NewAgentCommand(agent.Run),
		// For --help; main sees to them.
		cmds.NewKubectlCommand(kubectl.Run),
		cmds.NewCRICTL(crictl.Run),
		cmds.NewCtrCommand(ctr.Run),
		cmds.NewTokenCommands(token.Create, token.Delete, token.Generate, token.List, token.Rotate),
		cmds.NewEtcdSnapshotCommands(etcdsnapshot.Delete, etcdsnapshot.List, etcdsnapshot.Prune, etcdsnapshot.Save),
		cmds.NewSecretsEncryptCommands(
			secretsencrypt.Status, secretsencrypt.Enable, secretsencrypt.Disable, secretsencrypt.Prepare,
			secretsencrypt.Rotate, secretsencrypt.Reencrypt, secretsencrypt.RotateKeys,
		),
		cmds.NewCertCommands(cert.Check, cert.Rotate, cert.RotateCA),
	}
}

func main() {
	for name, tool := range tools {
		reexec.Register(name, tool)
	}
	called := os.Args[0]
	// reexec compares whole names; nobody calls /usr/bin/kubectl without its folder.
	os.Args[0] = filepath.Base(called)
	if reexec.Init() {
		return
	}
	os.Args[0] = called
	// `k3s kubectl get nodes` is `kubectl get nodes`.
	if len(os.Args) > 1 {
		if tool, ok := tools[os.Args[1]]; ok {
			os.Args = os.Args[1:]
			tool()
			return
		}
	}

	app := cmds.NewApp()
	// An argument with a comma, such as a kubelet argument, is one value.
	app.DisableSliceFlagSeparator = true
	app.Commands = commands()
	err := app.Run(configfilearg.MustParse(os.Args))
	if err != nil && !errors.Is(err, context.Canceled) {
		logrus.Fatalf("Error: %v", err)
	}
}
