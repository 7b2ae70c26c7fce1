# Sourced by config.sh and build.sh: unpacks Linux into /build/linux, patches it and goes there.
mkdir linux
echo "unpacking Linux"
tar -x -f /inputs/source/usr/src/linux-source-*.tar.* -C linux --strip-components=1
cd linux
while read -r patch; do
  echo "applying $patch"
  # Neither fuzz nor offsets are guessed at: a patch was made for this source, or it is not applied.
  if ! patch -p1 --batch --fuzz=0 --no-backup-if-mismatch <"/inputs/recipe/patches/$patch"; then
    echo "the patch $patch does not apply to this Linux"
    exit 1
  fi
done </inputs/recipe/patches.list
