cp -r /inputs/recipe/module src
cp -r /inputs/modules src/vendor
cd src
flags="-s -w -X k8s.io/client-go/pkg/version.gitVersion=v0.7.2 -X k8s.io/component-base/version.gitVersion=v0.7.2"
go build -p "$KILN_JOBS" -ldflags "$flags" -o "$KILN_OUT/metrics-server" sigs.k8s.io/metrics-server/cmd/metrics-server
"$KILN_OUT/metrics-server" --version | grep -F v0.7.2
