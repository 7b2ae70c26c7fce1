# What was checked when the image was made, seen on the running node. One line per finding: `ok FEATURE WHAT`, or `no FEATURE WHAT: WHY`.
# It ends with 0 if there is no `no`.
LC_ALL=C PATH=/usr/sbin:/usr/bin:/sbin:/bin
export LC_ALL PATH
release=$(uname -r)
config=/boot/config-$release
failed=0 count=0
ok() { echo "ok $*"; }
no() {
  echo "no $*"
  failed=1
}

# Whether Linux is of version $2.$3 or later.
linux() {
  minor=${release#*.}
  if [ "${release%%.*}" -gt "$2" ] || { [ "${release%%.*}" = "$2" ] && [ "${minor%%[!0-9]*}" -ge "$3" ]; }; then
    ok "$1" "Linux $2.$3 or later"
  else
    no "$1" "Linux $2.$3 or later: it is $release"
  fi
}

# Reads the values of the symbols $* out of the image's .config, in one go.
read_config() {
  [ -r "$config" ] || {
    no image "$config: it is not there"
    return
  }
  list=$(echo "$*" | tr ' ' '|')
  grep -E "^(# )?CONFIG_($list)(=| is not set$)" "$config" >/run/kiln-probe.config
  while read -r line; do
    case $line in
      '# CONFIG_'*) line=${line#\# CONFIG_} && eval "value_${line% is not set}=n" ;;
      *) line=${line#CONFIG_} && eval "value_${line%%=*}=\${line#*=}" ;;
    esac
  done </run/kiln-probe.config
  rm /run/kiln-probe.config
}

# Feature $1 wants the symbol $2 to be one of the words $3; if it is m, the module $4 is loaded for real.
want() {
  eval "value=\${value_$2:-n}"
  case " $3 " in
    *" $value "*) ;;
    *)
      no "$1" "CONFIG_$2=$3: it is $value"
      return
      ;;
  esac
  if [ "$value" != m ] || [ -z "$4" ] || [ -d "/sys/module/$4" ]; then
    ok "$1" "CONFIG_$2=$value"
    return
  fi
  # A driver may look for its device and go again when there is none; it was loaded all the same.
  why=$(modprobe "$4" 2>&1) || case $why in *"No such device"*) ;; *)
    no "$1" "module $4: $why"
    return
    ;;
  esac
  ok "$1" "module $4"
}

device() { ip link add kiln-probe type "$@"; }
chain() { iptables -w -t "$1" -N KILN; }
unit() {
  systemd-run --quiet --wait --pipe --collect --unit="$unit" "$@"
  code=$?
  uses=$((${uses:-0} + 1))
  unit=kiln-probe-$count-$uses.service
  return $code
}

# Before and after the probe $2 of feature $1, whose commands run between the two in a shell of their own.
begin() {
  count=$((count + 1))
  unit=kiln-probe-$count.service
  folder=$(mktemp -d /run/kiln-probe.XXXXXX)
}
end() {
  if [ "$1" = 0 ]; then ok "$2" "$3"; else no "$2" "$3: $(echo "$why" | tail -n 3 | tr '\n' ' ')($1)"; fi
  for name in kiln-probe kiln-v0 kiln-v1; do [ -d "/sys/class/net/$name" ] && ip link del "$name" 2>/dev/null; done
  for table in $(echo "$4" | sed -n 's/^chain //p'); do
    iptables -w -t "$table" -F KILN 2>/dev/null
    iptables -w -t "$table" -X KILN 2>/dev/null
  done
  case $4 in *'ipset create'*) ipset destroy kiln-probe 2>/dev/null ;; esac
  for place in "$folder"/*; do mountpoint -q "$place" && umount "$place"; done
  rm -rf "$folder"
}
