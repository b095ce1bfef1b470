# What completes a line in a real zsh: capture.zsh SCRIPT LINE... prints "> LINE", then the words offered for it.
zmodload zsh/zpty
ask() {
  local line
  zpty z zsh -f -i
  zpty -w z "PROMPT=; stty -echo; autoload -Uz compinit; compinit -D -u -C; source $1"
  zpty -w z 'compadd() { local -a shown; if [[ ${@[(I)-[OAD]*]} -eq 0 ]]; then builtin compadd -A shown "$@"; print -r -- "@@ ${(j: :)shown}"; fi; builtin compadd "$@" }'
  zpty -w z 'finish() { print -r -- "@@ ""END" }; zle -N finish; bindkey "^I" complete-word; bindkey "^X" finish; print -r -- "@@ ""READY"'
  while zpty -r z line; do [[ $line == *"@@ READY"* ]] && break; done
  zpty -n -w z "$2"$'\t\x18'
  while zpty -r z line; do
    line=${line//[$'\r\n']/}
    [[ $line == *"@@ END"* ]] && break
    [[ $line == *"@@ "* ]] && print -r -- "${line##*@@ }"
  done
  zpty -d z
}
for line in "${@:2}"; do print -r -- "> $line"; ask $1 $line; done
