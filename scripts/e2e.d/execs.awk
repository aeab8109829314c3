# strace -f output → one line "PROGRAM -> PROGRAM" for each program that was executed, and by which.
# A process is the program that it, or else its parent, executed last.
function program(pid) {
  if (!(pid in runs)) runs[pid] = (pid in parent) ? program(parent[pid]) : "?"
  return runs[pid]
}
{ lines[NR] = $0; pid[NR] = $1 }
# A child may be seen before the call that made it returns.
/(clone|clone3|fork|vfork)(\(| resumed>).* = [0-9]+/ {
  child = $0
  sub(/.* = /, "", child)
  sub(/[^0-9].*/, "", child)
  if (!(child in parent)) parent[child] = $1
}
END {
  for (i = 1; i <= NR; i++) {
    line = lines[i]
    p = pid[i]
    if (line ~ / exited with | killed by /) { delete runs[p]; continue }
    if (line !~ /^[0-9]+ +execve(at)?\(/) { program(p); continue }
    if (line ~ / = -1 E/) continue
    from = program(p)
    to = line
    sub(/^[^"]*"/, "", to)
    sub(/".*/, "", to)
    if (to == "" || to ~ /^\/proc\/self\/(exe|fd\/)/) to = from # itself again
    runs[p] = to
    print from " -> " to
  }
}
