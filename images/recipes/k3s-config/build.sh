cp -r /inputs/recipe/module src
cp -r /inputs/modules src/vendor
cd src
go vet .
go test .
mkdir -p "$KILN_OUT/usr/lib/kiln"
go build -p "$KILN_JOBS" -ldflags "-s -w" -o "$KILN_OUT/usr/lib/kiln/k3s-config" .
