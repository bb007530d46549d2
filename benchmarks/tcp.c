/* One TCP connection from client to server, in pieces of 128 KB: `tcp` receives at port 5001, and
 * `tcp ADDRESS MIB` sends. What it prints marks where the measured part begins and ends. */
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static char piece[128 << 10];
static struct sockaddr_in address = {.sin_family = AF_INET};

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

static int receive(int listening)
{
    long long received = 0;
    ssize_t got;

    if (bind(listening, (void *)&address, sizeof address) || listen(listening, 1)) {
        return 1;
    }
    int connection = accept(listening, NULL, NULL);
    while ((got = read(connection, piece, sizeof piece)) > 0) {
        received += got;
    }
    printf("=== received %lld\n", received);
    return got < 0;
}

static int transmit(int to, long long left)
{
    while (connect(to, (void *)&address, sizeof address)) {
        usleep(10000);
    }
    puts("=== begin");
    double begun = now();
    while (left > 0) {
        ssize_t gone = write(to, piece, left < (long long)sizeof piece ? (size_t)left : sizeof piece);
        if (gone <= 0) {
            return 1;
        }
        left -= gone;
    }
    shutdown(to, SHUT_WR);
    if (read(to, piece, 1)) {
        return 1;
    }
    printf("=== end %.6f s\n", now() - begun);
    return 0;
}

int main(int count, char **words)
{
    int connection = socket(AF_INET, SOCK_STREAM, 0);

    setbuf(stdout, NULL);
    address.sin_port = htons(5001);
    if (count == 1) {
        return receive(connection);
    }
    inet_aton(words[1], &address.sin_addr);
    return transmit(connection, atoll(words[2]) << 20);
}
