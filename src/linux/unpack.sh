# Sourced by config.sh and build.sh: unpacks Linux into /build/linux, patches it and goes there.
# $KERNEL_PARTS says how much of it. Linux has 85000 files, of which a build needs a part, and to make a .config needs few; writing
# and deleting the rest takes minutes on a slow disk. A patch may touch any of them.
archive=$(echo /inputs/source/usr/src/linux-source-*.tar.*)
mkdir linux
echo "unpacking Linux"
unpack() { tar -x -f "$archive" -C linux --strip-components=1 "$@"; }
if [ -s /inputs/recipe/patches.list ]; then
  unpack
elif [ "$KERNEL_PARTS" = config ]; then
  unpack --wildcards --no-wildcards-match-slash 'linux-source-*/Makefile' 'linux-source-*/scripts' "linux-source-*/arch/$SRCARCH/Makefile*" \
    --wildcards-match-slash '*/Kconfig*'
else
  others=()
  for arch in alpha arc arm arm64 csky hexagon loongarch m68k microblaze mips nios2 openrisc parisc powerpc riscv s390 sh sparc x86 xtensa; do
    [ "$arch" = "$SRCARCH" ] || others+=("--exclude=linux-source-*/arch/$arch/*.[chS]" "--exclude=linux-source-*/arch/$arch/*.dts*")
  done
  # Kconfig reads files in all of them, so those stay.
  unpack --wildcards --wildcards-match-slash "${others[@]}" --exclude='linux-source-*/Documentation/*.rst' \
    --exclude='linux-source-*/Documentation/*.yaml' --exclude='linux-source-*/Documentation/*.txt' \
    --exclude='linux-source-*/tools/testing/*' --exclude='linux-source-*/tools/perf/*' \
    --exclude='linux-source-*/drivers/gpu/drm/amd/*.[ch]'
fi
cd linux
while read -r patch; do
  echo "applying $patch"
  # Neither fuzz nor offsets are guessed at: a patch was made for this source, or it is not applied.
  if ! patch -p1 --batch --fuzz=0 --no-backup-if-mismatch <"/inputs/recipe/patches/$patch"; then
    echo "the patch $patch does not apply to this Linux"
    exit 1
  fi
done </inputs/recipe/patches.list
