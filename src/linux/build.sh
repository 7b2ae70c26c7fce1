# Builds a kernel by a .config that was made before, into the paths of a package.
if [ -s /inputs/config/lost ]; then
  echo "Kconfig did not grant what the fragments ask for:"
  cat /inputs/config/lost
  exit 1
fi
. /inputs/recipe/unpack.sh
cp /inputs/config/config .config
# Linux, Documentation/kbuild/reproducible-builds.rst
export KBUILD_BUILD_TIMESTAMP="@$SOURCE_DATE_EPOCH" KBUILD_BUILD_USER=kiln KBUILD_BUILD_HOST=kiln KBUILD_BUILD_VERSION=1
make olddefconfig
if ! cmp .config /inputs/config/config; then
  echo "the .config changes when it is read again"
  exit 1
fi
make -j"$KILN_JOBS" "$KERNEL_IMAGE"
release=$(make -s kernelrelease)
boot=$KILN_OUT/boot
modules=$KILN_OUT/usr/lib/modules/$release
mkdir -p "$boot" "$modules" "$KILN_OUT/usr/share/doc/$KERNEL_PACKAGE"
if grep -q '^CONFIG_MODULES=y' .config; then
  make -j"$KILN_JOBS" modules
  make INSTALL_MOD_PATH="$KILN_OUT/usr" INSTALL_MOD_STRIP=1 DEPMOD=true modules_install
  rm -f "$modules/build" "$modules/source"
else
  cp modules.builtin modules.builtin.modinfo "$modules"
  : >"$modules/modules.order"
fi
cp "$(make -s image_name)" "$boot/vmlinuz-$release"
cp .config "$boot/config-$release"
cp COPYING "$KILN_OUT/usr/share/doc/$KERNEL_PACKAGE/copyright"
