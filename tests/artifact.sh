#!/usr/bin/env bash
# The collection as Galaxy would get it: built, imported, checked by ansible-test, documented, and usable where it is installed.
# Outside the clone, because ansible-test refuses a tree that git ignores, and because the clone's link would hide a missing file.
set -euo pipefail
cd "$(dirname "$0")/.."

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
export ANSIBLE_COLLECTIONS_PATH=$scratch/collections

echo "artifact: build"
ansible-galaxy collection build --output-path "$scratch" . >/dev/null
artifact=$(echo "$scratch"/startline-lab-*.tar.gz)
ansible-galaxy collection install --no-deps -p "$scratch/collections" "$artifact" >/dev/null
installed=$scratch/collections/ansible_collections/startline/lab

echo "artifact: what Galaxy would refuse"
(cd "$scratch" && python -m galaxy_importer.main "$artifact") >"$scratch/importer.log" 2>&1 || { cat "$scratch/importer.log"; exit 1; }
if grep -E 'ERROR|WARNING' "$scratch/importer.log"; then
  echo "artifact: galaxy-importer warns" >&2
  exit 1
fi

echo "artifact: documentation"
antsibull-docs lint-collection-docs --plugin-docs --skip-rstcheck "$installed"
antsibull-changelog lint

echo "artifact: ansible-test sanity"
version=$(python -c 'import sys; print("%d.%d" % sys.version_info[:2])')
cd "$installed"
git init -q . # ansible-test asks git which files there are
# --local: no container. For its own virtual environments ansible-test wants to download get-pip; Python brings the same thing.
export HOME=$scratch/home
mkdir -p "$HOME/.ansible/test/cache"
python - "$version" <<'EOF'
import pathlib
import sys
import types

from ansible_test._internal.python_requirements import get_venv_packages

pip = get_venv_packages(types.SimpleNamespace(version=sys.argv[1]))["pip"].replace(".", "_")
bootstrap = pathlib.Path.home() / ".ansible" / "test" / "cache" / f"get_pip_{pip}.py"
bootstrap.write_text("import ensurepip\n\nensurepip.bootstrap()\n")
EOF
ansible-test sanity --local --python "$version" --color no

echo "artifact: every plugin documents itself where it is installed"
cd "$scratch"
for kind in module filter inventory; do
  ansible-doc -t "$kind" -l startline.lab --json 2>/dev/null >"$scratch/$kind.json"
  python - "$scratch/$kind.json" "$kind" <<'EOF'
import json
import sys

names = json.load(open(sys.argv[1]))
print(f"  {sys.argv[2]}: {', '.join(sorted(name.rpartition('.')[2] for name in names))}")
sys.exit(not names)
EOF
done
