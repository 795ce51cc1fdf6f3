#!/usr/bin/env bash
# The collection as Galaxy would get it: built, imported, checked by ansible-test, documented, and used where it is installed.
# Outside the clone, because ansible-test refuses a tree that git ignores, and because the clone's link would hide a missing file.
#
# The environments that ansible-test makes are kept in .ansible/ of the clone, as it keeps them in ~/.ansible for everybody else:
# the first call makes them, later ones take half the time.
set -euo pipefail
cd "$(dirname "$0")/.."
clone=$PWD
kept=$clone/.ansible/home

die() {
  echo "artifact: $*" >&2
  exit 1
}
# Without it ansible-test skips a test and says so in one line among many.
command -v shellcheck >/dev/null || die "shellcheck is not installed: ./setup.sh --dev does it"

scratch=$(mktemp -d)
aside=()
clean_up() {
  for job in "${aside[@]}"; do
    kill -- "-$job" 2>/dev/null || true
  done
  rm -rf "$scratch"
}
trap clean_up EXIT
touch "$scratch/ansible.cfg"
export ANSIBLE_CONFIG=$scratch/ansible.cfg ANSIBLE_COLLECTIONS_PATH=$scratch/collections
installed=$scratch/collections/ansible_collections/startline/lab

part() {
  local began=$SECONDS
  echo "artifact: $1"
  "$2"
  echo "artifact: $1: $((SECONDS - began)) s"
}

build() {
  ansible-galaxy collection build --output-path "$scratch" . >/dev/null
  ansible-galaxy collection install --no-deps -p "$scratch/collections" "$scratch"/startline-lab-*.tar.gz >/dev/null
}

galaxy() (
  cd "$scratch"
  if ! python -m galaxy_importer.main startline-lab-*.tar.gz >importer.log 2>&1; then
    cat importer.log
    exit 1
  fi
  if grep -E 'ERROR|WARNING' importer.log; then
    die "galaxy-importer warns"
  fi
)

documentation() {
  antsibull-docs lint-collection-docs --plugin-docs --skip-rstcheck "$installed"
  antsibull-changelog lint
}

# --local: no container. For its own virtual environments ansible-test wants to download get-pip; Python brings the same thing.
sanity() (
  version=$(python -c 'import sys; print("%d.%d" % sys.version_info[:2])')
  python - "$kept" "$version" <<'EOF'
import configparser
import pathlib
import sys
import types

from ansible_test._internal.python_requirements import get_venv_packages

kept = pathlib.Path(sys.argv[1])
pip = get_venv_packages(types.SimpleNamespace(version=sys.argv[2]))["pip"].replace(".", "_")
bootstrap = kept / ".ansible" / "test" / "cache" / f"get_pip_{pip}.py"
bootstrap.parent.mkdir(parents=True, exist_ok=True)
bootstrap.write_text(
    "import subprocess\n"
    "import sys\n\n"
    "subprocess.run([sys.executable, '-m', 'ensurepip'], stdout=subprocess.DEVNULL, check=True)\n"
)

# The user's own pip with its mirrors, but of what it says the errors only.
config = configparser.RawConfigParser()
config.read([pathlib.Path.home() / ".pip" / "pip.conf", pathlib.Path.home() / ".config" / "pip" / "pip.conf"])
config.read_dict({"global": {"quiet": "2"}})
settings = kept / ".config" / "pip" / "pip.conf"
settings.parent.mkdir(parents=True, exist_ok=True)
with settings.open("w") as stream:
    config.write(stream)
EOF
  cd "$installed"
  git init -q . # ansible-test asks git which files there are
  HOME=$kept ansible-test sanity --local --python "$version" --color no
)

# What ansible-doc cannot read or find it only warns of.
ansible_doc() {
  ansible-doc "$@" 2>warnings || true
  if [ -s warnings ]; then
    cat warnings >&2
    die "ansible-doc warns"
  fi
}

plugins() (
  cd "$scratch"
  for kind in module filter inventory role; do
    ansible_doc -t "$kind" -l startline.lab --json >"$kind.json"
    python - "$kind" <<'EOF'
import json
import pathlib
import sys

kind = sys.argv[1]
names = json.loads(pathlib.Path(f"{kind}.json").read_text())
print(f"  {kind}: {', '.join(sorted(name.rpartition('.')[2] for name in names))}")
sys.exit(not names)
EOF
  done
  ansible_doc startline.lab.start_barrier startline.lab.trial >/dev/null
)

project() (
  mkdir -p "$scratch/project/workloads"
  cd "$scratch/project"
  cp -R "$clone/experiments" .
  cp -R "$clone/workloads/dkg" workloads
  cp "$clone/tests/installed_mode.yml" .
  ansible-playbook --inventory localhost, installed_mode.yml --extra-vars "project_dir=$PWD"
)

part "build" build

# Side by side, each in a process group of its own, so that nothing goes on when this ends.
set -m
{
  part "what Galaxy would refuse" galaxy
  part "documentation" documentation
} >"$scratch/aside.log" 2>&1 &
aside+=($!)
part "ansible-test sanity" sanity &
aside+=($!)
set +m
failed=
wait "${aside[1]}" || failed=1
wait "${aside[0]}" || failed=1
cat "$scratch/aside.log"
aside=()
[ -z "$failed" ] || die "refused"

part "every plugin documents itself where it is installed" plugins
part "the installed collection in a project of its own" project
echo "artifact: passed in $SECONDS s"
