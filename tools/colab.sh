# What a notebook needs in Colab, beside the clone that this file lies in; each notebook's set-up cell runs it there.
# Colab's own torch, numpy and pandas stay as they are: they are in use. Its torchao is too old for PEFT, which then
# rejects every adapter. `bench` holds measurements that pages show, products.txt what page 05 reads; hypothesis and
# openai are for tests.
source=$(dirname "$0")/..
pip uninstall -q -y torchao
pip list --format=freeze | grep -E '^(torch|numpy|pandas)=' > colab.txt
pip install -q -c colab.txt hypothesis openai "$source"
ln -sfn "$source/nbs/bench" "$source/nbs/products.txt" .
