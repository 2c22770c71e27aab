/* Asks one HTTP server over and over, and looks at every frame of every stream.
 *
 *     load CORE PORT CONNECTIONS SECONDS SPREAD_MS LATE_US DRAIN_S < request
 *
 * Standard input brings one whole request in which sixteen '#' stand where a number is put that never
 * comes again. Each connection asks, reads the answer to its end and asks again, for SECONDS; the
 * first questions are spread over SPREAD_MS. What is under way then is waited for, DRAIN_S at most, so
 * that no work goes uncounted; what is still open is dropped.
 * A stream must bring " token01 STAMP" to " token62 STAMP" in order, each once, and [DONE]; a stamp is
 * the microsecond (CLOCK_MONOTONIC) at which the upstream sent it, so a frame's delay is what the
 * gateway and both sockets took, and a frame is late if that is more than LATE_US. Stalled is a
 * connection that heard nothing in the last second.
 * One JSON line on standard output tells what came of it. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { TOKENS = 62, LINE = 1 << 16, READ = 1 << 16, EVENTS = 512 };
enum { HEAD, LENGTH, SIZE, CHUNK, CHUNK_END, TRAILER, TO_CLOSE };
typedef struct {
  int fd, state, status, stream, close_after, asked;
  int next_token, broken, done;
  int64_t began, first, last; /* asked; first and last token */
  size_t left, held; /* of the body or chunk; of the head or line read so far */
  char *line;
} Connection;
typedef struct { uint32_t *at; size_t count, room; } Sample;

static Sample latencies, firsts, delays;
static unsigned long answers, streams, frames, lost, late, stalled, bad_status, cut, refused, malformed;
static char *request;
static size_t request_length;
static char *number_at;
static unsigned long long numbers;
static struct sockaddr_in address;
static int poller, late_us, first_bad, draining, under_way;

static int64_t now_us(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1000000LL + now.tv_nsec / 1000;
}

static void add(Sample *sample, int64_t value) {
  if (sample->count == sample->room) {
    sample->room = sample->room ? 2 * sample->room : 1 << 16;
    sample->at = realloc(sample->at, sample->room * sizeof *sample->at);
  }
  sample->at[sample->count++] = value < 0 ? 0 : value > UINT32_MAX ? UINT32_MAX : value;
}

static int by_size(const void *a, const void *b) {
  uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
  return (x > y) - (x < y);
}

static uint32_t share(Sample *sample, double part) {
  if (!sample->count) return 0;
  size_t i = part * sample->count;
  return sample->at[i < sample->count ? i : sample->count - 1];
}

static void answered(Connection *one) {
  under_way -= one->asked;
  one->asked = 0;
}

static void hang_up(Connection *one) {
  answered(one);
  if (one->fd >= 0) close(one->fd);
  one->fd = -1;
}

/* Ask the next question, on a new connection where the old one has gone. */
static void ask(Connection *one) {
  if (draining) return;
  if (one->fd < 0) {
    int on = 1;
    one->fd = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(one->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (connect(one->fd, (void *)&address, sizeof address)) {
      refused++;
      return hang_up(one);
    }
    struct epoll_event event = {EPOLLIN, {.ptr = one}};
    epoll_ctl(poller, EPOLL_CTL_ADD, one->fd, &event);
  }
  char digits[24];
  snprintf(digits, sizeof digits, "%016llu", ++numbers);
  if (number_at) memcpy(number_at, digits, 16);
  one->state = HEAD;
  one->stream = one->broken = one->done = one->close_after = one->status = 0;
  one->next_token = 1;
  one->left = one->held = 0;
  one->first = 0;
  one->began = one->last = now_us();
  one->asked = 1;
  under_way++;
  if (send(one->fd, request, request_length, MSG_NOSIGNAL) != (ssize_t)request_length) hang_up(one);
}

/* An answer has come whole. */
static void finish(Connection *one) {
  int64_t now = now_us();
  answers++;
  answered(one);
  if (one->status != 200) {
    bad_status++;
    if (!first_bad) first_bad = one->status;
  } else if (one->stream) {
    streams++;
    lost += TOKENS + 1 - one->next_token;
    malformed += one->broken;
    cut += !one->done;
    if (one->first) add(&firsts, one->first - one->began);
    add(&latencies, now - one->began);
  } else {
    add(&latencies, now - one->began);
  }
  if (one->close_after) hang_up(one);
  ask(one);
}

/* One line of a stream: the tokens it brings, in order. */
static void look(Connection *one) {
  one->line[one->held] = 0;
  if (strncmp(one->line, "data:", 5)) return;
  if (strstr(one->line, "[DONE]")) one->done = 1;
  for (char *at = one->line; (at = strstr(at, " token")); at += 6) {
    int token = atoi(at + 6);
    if (token != one->next_token) one->broken = 1;
    if (token >= one->next_token) one->next_token++;
    int64_t now = now_us(), sent = atoll(at + 9);
    if (!one->first) one->first = now;
    one->last = now;
    frames++;
    if (!sent) continue;
    add(&delays, now - sent);
    late += now - sent > late_us;
  }
}

static void body(Connection *one, const char *at, size_t length) {
  if (!one->stream) return;
  while (length) {
    const char *end = memchr(at, '\n', length);
    size_t part = end ? (size_t)(end - at) : length;
    if (one->held + part < LINE) memcpy(one->line + one->held, at, part), one->held += part;
    if (!end) return;
    look(one);
    one->held = 0;
    at = end + 1;
    length -= part + 1;
  }
}

static void read_head(Connection *one) {
  one->line[one->held] = 0;
  char *field;
  one->status = atoi(one->line + 9);
  one->stream = strcasestr(one->line, "\r\ncontent-type: text/event-stream") != NULL;
  one->close_after = strcasestr(one->line, "\r\nconnection: close") != NULL;
  if (strcasestr(one->line, "\r\ntransfer-encoding: chunked")) {
    one->state = SIZE;
  } else if ((field = strcasestr(one->line, "\r\ncontent-length:"))) {
    one->left = atol(field + 17);
    one->state = LENGTH;
  } else {
    one->state = TO_CLOSE;
  }
  one->held = 0;
}

/* Take in what one read brought. `held` counts the head's bytes, then those of a line of the stream;
 * a chunk's size line is read digit by digit into `left`, so that both can be cut anywhere. */
static void take(Connection *one, const char *at, size_t length) {
  while (length) {
    if (one->state == HEAD) {
      if (one->held + 1 >= LINE) return hang_up(one);
      one->line[one->held++] = *at++;
      length--;
      if (one->held >= 4 && !memcmp(one->line + one->held - 4, "\r\n\r\n", 4)) {
        read_head(one);
        if (one->state == LENGTH && !one->left) return finish(one);
      }
    } else if (one->state == SIZE) {
      char digit = *at++;
      length--;
      if (digit == '\n') one->state = one->left ? CHUNK : TRAILER;
      else if (digit >= '0' && digit <= '9') one->left = one->left * 16 + digit - '0';
      else if ((digit | 32) >= 'a' && (digit | 32) <= 'f') one->left = one->left * 16 + (digit | 32) - 'a' + 10;
    } else if (one->state == CHUNK_END || one->state == TRAILER) {
      char end = *at++;
      length--;
      if (end != '\n') continue;
      if (one->state == TRAILER) return finish(one);
      one->state = SIZE;
    } else {
      size_t part = one->state == TO_CLOSE || length < one->left ? length : one->left;
      body(one, at, part);
      at += part;
      length -= part;
      if (one->state == TO_CLOSE) continue;
      one->left -= part;
      if (one->left) continue;
      if (one->state == LENGTH) return finish(one);
      one->state = CHUNK_END;
    }
  }
}

static void tell(const char *name, Sample *sample) {
  qsort(sample->at, sample->count, sizeof *sample->at, by_size);
  printf("\"%s_p50_us\":%u,\"%s_p99_us\":%u,\"%s_max_us\":%u,", name, share(sample, 0.5), name,
         share(sample, 0.99), name, share(sample, 1));
}

int main(int count, char **arguments) {
  if (count != 8) return 2;
  int core = atoi(arguments[1]), connections = atoi(arguments[3]);
  double seconds = atof(arguments[4]);
  int64_t spread_us = atoll(arguments[5]) * 1000;
  late_us = atoi(arguments[6]);
  if (core >= 0) {
    cpu_set_t cores;
    CPU_ZERO(&cores);
    CPU_SET(core, &cores);
    sched_setaffinity(0, sizeof cores, &cores);
  }
  request = calloc(1, 1 << 16);
  request_length = fread(request, 1, (1 << 16) - 1, stdin);
  number_at = strstr(request, "################");
  numbers = (unsigned long long)now_us() * 1000; /* no two runs ask the same */
  address = (struct sockaddr_in){AF_INET, htons(atoi(arguments[2])), {htonl(INADDR_LOOPBACK)}, {0}};
  poller = epoll_create1(0);
  Connection *all = calloc(connections, sizeof *all);
  for (int i = 0; i < connections; i++) all[i].fd = -1, all[i].line = malloc(LINE + 1);
  static char buffer[READ];
  struct epoll_event events[EVENTS];
  int64_t begin = now_us(), end = begin + seconds * 1e6, now;
  int64_t last = end + atof(arguments[7]) * 1e6;
  int asking = 0;
  while ((now = now_us()) < end || (under_way && now < last)) {
    if (now >= end) draining = 1;
    while (!draining && asking < connections && begin + spread_us * asking / connections <= now) ask(&all[asking++]);
    int wait_ms = draining ? (last - now) / 1000 + 1 : asking < connections ? 1 : (end - now) / 1000 + 1;
    int ready = epoll_wait(poller, events, EVENTS, wait_ms);
    for (int i = 0; i < ready; i++) {
      Connection *one = events[i].data.ptr;
      if (one->fd < 0) continue;
      ssize_t got = recv(one->fd, buffer, READ, 0);
      if (got > 0) {
        take(one, buffer, got);
      } else if (one->state == TO_CLOSE) {
        one->close_after = 1;
        finish(one);
      } else {
        cut += one->state != HEAD || one->held;
        if (one->stream) lost += TOKENS + 1 - one->next_token;
        hang_up(one);
        ask(one);
      }
    }
    for (int i = 0; ready == 0 && i < asking; i++)
      if (all[i].fd < 0) ask(&all[i]);
  }
  int64_t took = now_us() - begin;
  for (int i = 0; i < asking; i++) stalled += all[i].last < now - 1000000;
  printf("{");
  tell("latency", &latencies);
  tell("first", &firsts);
  tell("delay", &delays);
  printf("\"took_us\":%lld,\"answers\":%lu,\"streams\":%lu,\"frames\":%lu,\"lost\":%lu,\"late\":%lu,\"stalled\":%lu,"
         "\"cut\":%lu,\"malformed\":%lu,\"refused\":%lu,\"bad_status\":%lu,\"first_bad\":%d}\n",
         (long long)took, answers, streams, frames, lost, late, stalled, cut, malformed, refused, bad_status, first_bad);
  return 0;
}
