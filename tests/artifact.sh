#!/usr/bin/env bash
# The collection as Galaxy would get it: built, imported, checked by ansible-test, documented, and used where it is installed.
# Outside the clone, because ansible-test refuses a tree that git ignores, and because the clone's link would hide a missing file.
#
# The environments that ansible-test makes are kept in .ansible/ of the clone, as it keeps them in ~/.ansible for everybody else:
# the first call makes them, later ones take half the time.
set -euo pipefail
cd "$(dirname "$0")/.."
clone=$PWD

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
: >"$scratch/ansible.cfg"
export ANSIBLE_CONFIG=$scratch/ansible.cfg ANSIBLE_COLLECTIONS_PATH=$scratch/collections

part=
begin() {
  [ -z "$part" ] || echo "artifact: $part: $((SECONDS - since)) s"
  part=$1 since=$SECONDS
  [ -z "$part" ] || echo "artifact: $part"
}
die() {
  echo "artifact: $*" >&2
  exit 1
}

begin "build"
ansible-galaxy collection build --output-path "$scratch" . >/dev/null
artifact=$(echo "$scratch"/startline-lab-*.tar.gz)
ansible-galaxy collection install --no-deps -p "$scratch/collections" "$artifact" >/dev/null
installed=$scratch/collections/ansible_collections/startline/lab

begin "what Galaxy would refuse"
(cd "$scratch" && python -m galaxy_importer.main "$artifact") >"$scratch/importer.log" 2>&1 || { cat "$scratch/importer.log"; exit 1; }
if grep -E 'ERROR|WARNING' "$scratch/importer.log"; then
  die "galaxy-importer warns"
fi

begin "documentation"
antsibull-docs lint-collection-docs --plugin-docs --skip-rstcheck "$installed"
antsibull-changelog lint

begin "ansible-test sanity"
# Without it ansible-test skips the test and says so in one line among many.
command -v shellcheck >/dev/null || die "shellcheck is not installed: ./setup.sh --dev does it"
version=$(python -c 'import sys; print("%d.%d" % sys.version_info[:2])')
# --local: no container. For its own virtual environments ansible-test wants to download get-pip; Python brings the same thing.
python - "$clone/.ansible/home" "$version" <<'EOF'
import configparser
import pathlib
import sys
import types

from ansible_test._internal.python_requirements import get_venv_packages

home = pathlib.Path(sys.argv[1])
pip = get_venv_packages(types.SimpleNamespace(version=sys.argv[2]))["pip"].replace(".", "_")
bootstrap = home / ".ansible" / "test" / "cache" / f"get_pip_{pip}.py"
bootstrap.parent.mkdir(parents=True, exist_ok=True)
bootstrap.write_text(
    "import subprocess\n"
    "import sys\n\n"
    "subprocess.run([sys.executable, '-m', 'ensurepip'], stdout=subprocess.DEVNULL, check=True)\n"
)

# The user's own pip, with its mirrors, but errors only.
config = configparser.RawConfigParser()
config.read([pathlib.Path.home() / ".pip" / "pip.conf", pathlib.Path.home() / ".config" / "pip" / "pip.conf"])
config.read_dict({"global": {"quiet": "2"}})
kept = home / ".config" / "pip" / "pip.conf"
kept.parent.mkdir(parents=True, exist_ok=True)
with kept.open("w") as stream:
    config.write(stream)
EOF
(
  cd "$installed"
  git init -q . # ansible-test asks git which files there are
  HOME=$clone/.ansible/home ansible-test sanity --local --python "$version" --color no
)

begin "every plugin documents itself where it is installed"
cd "$scratch"
for kind in module filter inventory; do
  ansible-doc -t "$kind" -l startline.lab --json 2>"$scratch/errors" >"$scratch/$kind.json"
  [ ! -s "$scratch/errors" ] || { cat "$scratch/errors" >&2; die "ansible-doc warns"; }
  python - "$scratch/$kind.json" "$kind" <<'EOF'
import json
import sys

names = json.load(open(sys.argv[1]))
print(f"  {sys.argv[2]}: {', '.join(sorted(name.rpartition('.')[2] for name in names))}")
sys.exit(not names)
EOF
done
ansible-doc startline.lab.start_barrier | grep -q "^> MODULE startline.lab.start_barrier" || die "start_barrier has no documentation"

begin "the installed collection in a project of its own"
mkdir -p "$scratch/project/workloads"
cp -R "$clone/experiments" "$scratch/project/experiments"
cp -R "$clone/workloads/dkg" "$scratch/project/workloads/dkg"
cp "$clone/tests/installed_mode.yml" "$scratch/project"
cd "$scratch/project"
ansible-playbook -i localhost, installed_mode.yml -e "project_dir=$scratch/project"
begin ""
echo "artifact: $(basename "$artifact") passes: $SECONDS s"
