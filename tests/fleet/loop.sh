for host in one two three; do
    ssh "$host" python3 -m hotrestart restart /run/app.pid || exit
done
