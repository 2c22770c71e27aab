/* A pretended OpenAI backend that costs next to nothing: one thread, epoll, answers made beforehand.
 *
 *     stub CORE PORTS FRAMES < blocks
 *
 * Standard input brings the answers as blocks, "LENGTH\n" and then the bytes: one whole answer for
 * each port, an error, the head of a stream, and FRAMES frames of it (chunked encoding and all). The
 * ports are printed as one JSON line; the process ends with its standard input. Control, per port:
 * GET /__set?mode=ok|error|hang&delay_s=0&interval_s=0 and GET /__stats. With interval_s 0 a stream
 * leaves in one write, else frame by frame on a beat of its own, each bearing in place of the sixteen
 * noughts in its text the microsecond (CLOCK_MONOTONIC) at which it was sent. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { OK, ERROR, HANG };
enum { ROOM = 1 << 20, MOST_PORTS = 64, EVENTS = 512 };
typedef struct { char *at; size_t length; } Block;
typedef struct {
  int listener, mode;
  int64_t delay_us, interval_us;
  unsigned long requests, connections;
  int64_t first_us; /* when it first answered after it was last told how to behave */
  Block whole;
} Port;
typedef struct Connection {
  int fd, frame, busy;  /* busy: an answer is under way or due, so what else came waits */
  Port *port;           /* NULL: this is a listener, and `own` its port */
  Port *own;
  unsigned generation;  /* timers of a connection that has gone mean nothing */
  char *bytes;
  size_t held, room;
  struct Connection *next_free;
} Connection;
typedef struct { int64_t due; Connection *whose; unsigned generation; int what; } Timer;
enum { ANSWER, STREAM, FRAME };

static Port ports[MOST_PORTS];
static Block failure, head, *frames, burst;
static size_t *stamps; /* where each frame's noughts begin, 0 for none */
static int poller, frame_count;
static Timer *timers;
static int timer_count, timer_room;
static Connection *free_connections;

static int64_t now_us(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1000000LL + now.tv_nsec / 1000;
}

/* A binary heap by due time. */
static void later(int64_t due, Connection *whose, int what) {
  if (timer_count == timer_room) {
    timer_room = timer_room ? 2 * timer_room : 1024;
    timers = realloc(timers, timer_room * sizeof *timers);
  }
  int i = timer_count++;
  for (; i && timers[(i - 1) / 2].due > due; i = (i - 1) / 2) timers[i] = timers[(i - 1) / 2];
  timers[i] = (Timer){due, whose, whose->generation, what};
}

static Timer soonest(void) {
  Timer first = timers[0], last = timers[--timer_count];
  int i = 0;
  for (int child; (child = 2 * i + 1) < timer_count; i = child) {
    if (child + 1 < timer_count && timers[child + 1].due < timers[child].due) child++;
    if (timers[child].due >= last.due) break;
    timers[i] = timers[child];
  }
  timers[i] = last;
  return first;
}

static void hang_up(Connection *one) {
  close(one->fd);
  free(one->bytes);
  one->bytes = NULL;
  one->fd = -1;
  one->generation++;
  one->next_free = free_connections;
  free_connections = one;
}

static void send_all(Connection *one, const char *at, size_t length) {
  while (length) {
    ssize_t sent = send(one->fd, at, length, MSG_NOSIGNAL);
    if (sent < 0) {
      struct pollfd full = {one->fd, POLLOUT, 0};
      if (errno != EAGAIN || poll(&full, 1, 1000) <= 0) return;
      continue;
    }
    at += sent;
    length -= sent;
  }
}

static void send_frame(Connection *one) {
  Block frame = frames[one->frame];
  if (stamps[one->frame]) {
    char digits[24];
    snprintf(digits, sizeof digits, "%016lld", (long long)now_us());
    memcpy(frame.at + stamps[one->frame], digits, 16);
  }
  if (one->frame == 0) send_all(one, head.at, head.length);
  send_all(one, frame.at, frame.length);
  one->frame++;
}

static void answer(Connection *one, int stream) {
  Port *port = one->port;
  one->busy = 0;
  if (!port->first_us) port->first_us = now_us();
  if (port->mode == ERROR) return send_all(one, failure.at, failure.length);
  if (!stream) return send_all(one, port->whole.at, port->whole.length);
  if (!port->interval_us) return send_all(one, burst.at, burst.length);
  one->busy = 1;
  one->frame = 0;
  send_frame(one);
  later(now_us() + port->interval_us, one, FRAME);
}

static void control(Connection *one, const char *target) {
  Port *port = one->port;
  char body[256], whole[512], *value;
  if (strstr(target, "__set")) port->first_us = 0;
  if ((value = strstr(target, "mode=")))
    port->mode = value[5] == 'e' ? ERROR : value[5] == 'h' ? HANG : OK;
  if ((value = strstr(target, "delay_s="))) port->delay_us = atof(value + 8) * 1e6;
  if ((value = strstr(target, "interval_s="))) port->interval_us = atof(value + 11) * 1e6;
  int length = snprintf(body, sizeof body, "{\"requests\":%lu,\"connections\":%lu,\"first_us\":%lld}",
                        port->requests, port->connections, (long long)port->first_us);
  length = snprintf(whole, sizeof whole, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", length, body);
  send_all(one, whole, length);
}

/* Answer what has come whole; requests are not pipelined, but what follows one is kept. */
static void work(Connection *one) {
  while (one->fd >= 0 && !one->busy && one->held) {
    one->bytes[one->held] = 0;
    char *end = strstr(one->bytes, "\r\n\r\n");
    if (!end) return;
    size_t head_length = end - one->bytes + 4, total = head_length;
    char *field = strcasestr(one->bytes, "\r\ncontent-length:");
    if (field && field < end) {
      total += atol(field + 17);
    } else if ((field = strcasestr(one->bytes, "\r\ntransfer-encoding: chunked")) && field < end) {
      char *last = strstr(end + 2, "\r\n0\r\n\r\n");
      if (!last) return;
      total = last - one->bytes + 7;
    }
    if (one->held < total) return;
    if (!strncmp(one->bytes, "GET /__", 7)) {
      char *line = strchr(one->bytes, '\r');
      *line = 0;
      control(one, one->bytes);
    } else {
      Port *port = one->port;
      char kept = one->bytes[total];
      one->bytes[total] = 0;
      char *asked = strstr(one->bytes + head_length, "\"stream\"");
      if (asked) asked += 8 + strspn(asked + 8, " :");
      int stream = asked && *asked == 't';
      one->bytes[total] = kept;
      port->requests++;
      if (port->mode == HANG) {
        one->busy = 1;
      } else if (port->delay_us) {
        one->busy = 1;
        later(now_us() + port->delay_us, one, stream ? STREAM : ANSWER);
      } else {
        answer(one, stream);
      }
    }
    memmove(one->bytes, one->bytes + total, one->held - total);
    one->held -= total;
  }
}

static void listen_on(Port *port) {
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  port->listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
  if (bind(port->listener, (void *)&address, sizeof address) || listen(port->listener, 4096)) {
    perror("listen");
    exit(1);
  }
  Connection *one = calloc(1, sizeof *one);
  one->fd = port->listener;
  one->own = port;
  struct epoll_event event = {EPOLLIN, {.ptr = one}};
  epoll_ctl(poller, EPOLL_CTL_ADD, one->fd, &event);
}

static void accept_all(Port *port) {
  int fd, one = 1;
  while ((fd = accept4(port->listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    Connection *fresh = free_connections;
    if (fresh) free_connections = fresh->next_free;
    else fresh = calloc(1, sizeof *fresh);
    unsigned generation = fresh->generation;
    *fresh = (Connection){.fd = fd, .port = port, .generation = generation, .room = 8192};
    fresh->bytes = malloc(fresh->room + 1);
    port->connections++;
    struct epoll_event event = {EPOLLIN, {.ptr = fresh}};
    epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event);
  }
}

static void receive(Connection *one) {
  if (one->room - one->held < 4096) {
    if (one->room >= ROOM) return hang_up(one);
    one->room *= 2;
    one->bytes = realloc(one->bytes, one->room + 1);
  }
  ssize_t got = recv(one->fd, one->bytes + one->held, one->room - one->held, 0);
  if (got == 0 || (got < 0 && errno != EAGAIN)) return hang_up(one);
  if (got < 0) return;
  one->held += got;
  work(one);
}

static void run_timers(void) {
  int64_t now = now_us();
  while (timer_count && timers[0].due <= now) {
    Timer timer = soonest();
    Connection *one = timer.whose;
    if (one->fd < 0 || one->generation != timer.generation) continue;
    if (timer.what != FRAME) {
      answer(one, timer.what == STREAM);
    } else {
      send_frame(one);
      if (one->frame == frame_count) one->busy = 0;
      else later(timer.due + one->port->interval_us, one, FRAME);
    }
    if (!one->busy) work(one);
  }
}

static Block read_block(void) {
  Block block;
  if (scanf("%zu", &block.length) != 1 || getchar() != '\n') exit(2);
  block.at = malloc(block.length + 1);
  if (fread(block.at, 1, block.length, stdin) != block.length) exit(2);
  block.at[block.length] = 0;
  return block;
}

int main(int count, char **arguments) {
  if (count != 4) return 2;
  int core = atoi(arguments[1]), port_count = atoi(arguments[2]);
  frame_count = atoi(arguments[3]);
  if (core >= 0) {
    cpu_set_t cores;
    CPU_ZERO(&cores);
    CPU_SET(core, &cores);
    sched_setaffinity(0, sizeof cores, &cores);
  }
  poller = epoll_create1(0);
  for (int i = 0; i < port_count; i++) ports[i].whole = read_block();
  failure = read_block();
  head = read_block();
  frames = calloc(frame_count, sizeof *frames);
  stamps = calloc(frame_count, sizeof *stamps);
  burst.at = malloc(ROOM);
  memcpy(burst.at, head.at, burst.length = head.length);
  for (int i = 0; i < frame_count; i++) {
    frames[i] = read_block();
    char *noughts = strstr(frames[i].at, "0000000000000000");
    stamps[i] = noughts ? noughts - frames[i].at : 0;
    memcpy(burst.at + burst.length, frames[i].at, frames[i].length);
    burst.length += frames[i].length;
  }
  for (int i = 0; i < port_count; i++) {
    struct sockaddr_in address;
    socklen_t size = sizeof address;
    listen_on(&ports[i]);
    getsockname(ports[i].listener, (void *)&address, &size);
    printf("%s%d", i ? ", " : "[", ntohs(address.sin_port));
  }
  printf("]\n");
  fflush(stdout);
  struct epoll_event events[EVENTS], end = {EPOLLIN | EPOLLHUP, {.ptr = NULL}};
  epoll_ctl(poller, EPOLL_CTL_ADD, 0, &end);
  for (;;) {
    struct timespec wait, *patience = NULL;
    if (timer_count) {
      int64_t left = timers[0].due - now_us();
      if (left < 0) left = 0;
      wait = (struct timespec){left / 1000000, left % 1000000 * 1000};
      patience = &wait;
    }
    int ready = epoll_pwait2(poller, events, EVENTS, patience, NULL);
    for (int i = 0; i < ready; i++) {
      Connection *one = events[i].data.ptr;
      if (!one) return 0; /* standard input has ended, and with it whoever started this */
      if (one->own) accept_all(one->own);
      else if (one->fd >= 0) receive(one);
    }
    run_timers();
  }
}
