# What zsh offers for LINE<TAB>, one a line:  zsh -f complete.zsh FOLDER-OF-_alluvium LINE
# A shell on a pseudo-terminal, whose compadd also prints what it is given.
zmodload zsh/zpty
zpty z zsh -f -i
type_line() { zpty -w z "$1" }
type_line "PROMPT=; fpath=(${(q)1} \$fpath); autoload -Uz compinit; compinit -u -D"
type_line 'LISTMAX=9999; unsetopt menucomplete automenu'
type_line 'compadd() { local -a hits; builtin compadd -O hits "$@"; print -rl -- "OFFER:"$^hits; builtin compadd "$@" }'
type_line 'bindkey "^I" complete-word; print REA""DY'
zpty -r z out '*READY*'
zpty -w -n z "$2"$'\t'
zpty -w -n z $'\C-A#\n'
type_line 'print E""ND'
zpty -r z out '*END*'
print -r -- "$out" | tr -d '\r' | sed -n 's/.*OFFER:\(.*\)/\1/p'
