# Tags, flags and version strings are those of upstream's scripts/build and scripts/version.sh, less what is for other systems.
cp -r /inputs/recipe/module src
cp -r /inputs/modules src/vendor
cd src

# Version of a module, or of what go.mod puts in its place: a line of vendor/modules.txt is `# MODULE VERSION [=> MODULE VERSION]`.
version_of() {
  awk -v module="$1" '$1 == "#" && $2 == module { print $NF; found = 1; exit } END { exit !found }' vendor/modules.txt
}

date=$(date -u -d "@$SOURCE_DATE_EPOCH" +%Y-%m-%dT%H:%M:%SZ)
flags="-s -w"
set_string() { flags="$flags -X $1=$2"; }
set_string github.com/k3s-io/k3s/pkg/version.Version "$K3S_VERSION"
set_string github.com/k3s-io/k3s/pkg/version.GitCommit "${K3S_COMMIT:0:8}"
set_string github.com/k3s-io/k3s/pkg/version.UpstreamGolang "$(go env GOVERSION)"
for kubernetes in k8s.io/client-go/pkg/version k8s.io/component-base/version; do
  set_string $kubernetes.gitVersion "$K3S_VERSION"
  set_string $kubernetes.gitCommit "$K3S_COMMIT"
  set_string $kubernetes.gitTreeState clean
  set_string $kubernetes.buildDate "$date"
done
set_string github.com/containerd/containerd/v2/version.Version "$(version_of github.com/containerd/containerd/v2)"
set_string github.com/containerd/containerd/v2/version.Package github.com/k3s-io/containerd/v2
set_string sigs.k8s.io/cri-tools/pkg/version.Version "$(version_of sigs.k8s.io/cri-tools)"
set_string github.com/cloudnativelabs/kube-router/v2/pkg/version.Version "$(version_of github.com/cloudnativelabs/kube-router/v2)"
set_string github.com/cloudnativelabs/kube-router/v2/pkg/version.BuildDate "$date"

tags="ctrd netcgo osusergo providerless urfave_cli_no_docs sqlite_omit_load_extension apparmor seccomp"
# Go's own plugins could never be loaded (upstream's program is static); a program that could has 43 MB of symbols for them.
tags="$tags static_build kustomize_disable_go_plugin_support"
bin=$KILN_OUT/usr/bin
mkdir -p "$bin"
export CGO_CFLAGS="-O2 -g0 -DSQLITE_ENABLE_DBSTAT_VTAB=1 -DSQLITE_USE_ALLOCA=1 -ffile-prefix-map=$PWD=."
go build -p "$KILN_JOBS" -trimpath -buildvcs=false -tags "$tags" -ldflags "$flags" -o "$bin/k3s" ./cmd/k3s
CGO_ENABLED=0 go build -p "$KILN_JOBS" -trimpath -buildvcs=false -tags "${tags/netcgo/netgo}" -ldflags "$flags" \
  -o "$bin/containerd-shim-runc-v2" ./cmd/containerd-shim-runc-v2
for tool in containerd crictl ctr kubectl; do
  ln -s k3s "$bin/$tool"
done

# A program that does not say what it is would be one that upstream's names for its version have moved away from.
"$bin/k3s" --version | grep -F "k3s version $K3S_VERSION (${K3S_COMMIT:0:8})"
"$bin/kubectl" version --client | grep -F "Client Version: $K3S_VERSION"
"$bin/k3s" kubectl version --client | grep -F "Client Version: $K3S_VERSION"
"$bin/containerd" --version | grep -F "$(version_of github.com/containerd/containerd/v2)"
