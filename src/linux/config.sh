# Makes the .config of a kernel out of what its fragments ask for, and keeps what explains it: the files of Kconfig.
. /inputs/recipe/unpack.sh
asked=/inputs/recipe/asked.config
case $KERNEL_BASE in
nothing) make KCONFIG_ALLCONFIG=$asked allnoconfig ;;
defconfig)
  make defconfig
  cat $asked >>.config
  make olddefconfig
  ;;
esac
mkdir -p "$KILN_OUT/kconfig"
cp .config "$KILN_OUT/config"
find . -name 'Kconfig*' -type f -print0 | tar -c --null -T - | tar -x -C "$KILN_OUT/kconfig"
# What was asked for and is not so. kiln, which has more to say about it, looks before it builds; this is for builds by hand.
awk '
  FNR == NR { if ($0 ~ /^CONFIG_/) { split($0, part, "="); on[part[1]] = $0 } next }
  /^CONFIG_/ { split($0, part, "="); if (on[part[1]] != $0) print $0 }
  /^# CONFIG_/ { if ($2 in on) print $0 }
' .config $asked >"$KILN_OUT/lost"
