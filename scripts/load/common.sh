# Sourced by the scripts beside it: flags, the program, and a run of `pyrotee load`. Not to be run.
#
# A script sets its defaults (seconds, requests, connections, rate, size), then calls `read_flags "$@"`. Every run ends when
# its time is up or its requests are sent, whichever comes first.
set -euo pipefail

url=http://127.0.0.1:4040

# Prints the comment at the top of the script, and what can be set.
help() {
  sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"
  echo "Flags, each with its value here:"
  echo "  URL                the gateway ($url)"
  echo "  --seconds N        at most this long (${seconds})"
  echo "  --requests N       at most so many (${requests})"
  echo "  --connections N    connections (${connections})"
  [[ -z ${rate:-} ]] || echo "  --rate N           requests per second (${rate})"
  echo "  --size SIZES       of bodies, with weights (${size})"
  echo "The program is \$PYROTEE, else target/release/pyrotee, else the pyrotee in the PATH."
  echo "Exit status: 0 every request was answered with 200, 1 not every one, 64 wrong use."
}

wrong() {
  echo "${0##*/}: $1; --help lists what there is" >&2
  exit 64
}

read_flags() {
  while (($#)); do
    case $1 in
      -h | --help) help && exit 0 ;;
      --seconds | --requests | --connections | --rate)
        [[ ${2:-} =~ ^[1-9][0-9]{0,8}$ ]] || wrong "$1 takes a number from 1 on"
        [[ $1 != --rate || -n ${rate:-} ]] || wrong "$1 means nothing here"
        printf -v "${1#--}" %s "$2"
        shift
        ;;
      --size) size=${2:-} && shift ;;
      http://*) url=$1 ;;
      *) wrong "no flag \"$1\"" ;;
    esac
    shift || wrong "a value is missing"
  done
  find_program
}

find_program() {
  local built
  built="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)/target/release/pyrotee"
  pyrotee=${PYROTEE:-$built}
  [[ -x $pyrotee ]] || pyrotee=$(command -v pyrotee) || wrong "no pyrotee; cargo build --release, or set PYROTEE"
}

# Runs the load with the flags read, and those given.
load() {
  "$pyrotee" load "$url" --duration "${seconds}s" --requests "$requests" --connections "$connections" --size "$size" "$@"
}
