cp -r /inputs/recipe/module src
cp -r /inputs/modules src/vendor
cd src
go build -p "$KILN_JOBS" -ldflags "-s -w -X main.VERSION=v0.0.30" -o "$KILN_OUT/local-path-provisioner" \
  github.com/rancher/local-path-provisioner
"$KILN_OUT/local-path-provisioner" --version | grep -F v0.0.30
