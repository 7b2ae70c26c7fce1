cp -r /inputs/recipe/module src
cp -r /inputs/modules src/vendor
cd src
go build -p "$KILN_JOBS" -ldflags "-s -w" -o "$KILN_OUT/coredns" .
"$KILN_OUT/coredns" -version | grep -F CoreDNS-1.12.1
