#include "frontends/admin/admin.h"

#include <string_view>
#include <utility>

namespace fairway::admin {

namespace {

net::HttpResponse Text(int status, std::string body) {
  return {.status = status, .content_type = "text/plain; charset=utf-8", .body = std::move(body) + "\n"};
}

constexpr std::string_view kPages = "pages: /metrics /healthz /readyz /debug/fleet /debug/decisions";

}  // namespace

net::HttpResponse Answer(const net::HttpRequest& request, const Content& content) {
  const std::string_view path = request.path();
  if (request.method != "GET" && request.method != "HEAD") {
    net::HttpResponse response = Text(405, "only GET");
    response.headers.emplace_back("allow", "GET, HEAD");
    return response;
  }
  if (path == "/metrics") {
    return {.content_type = "text/plain; version=0.0.4; charset=utf-8", .body = content.registry->Render()};
  }
  if (path == "/healthz" || path == "/livez") return Text(200, "ok");
  if (path == "/readyz") {
    return !content.ready || content.ready() ? Text(200, "ok")
                                             : Text(503, "no pool is known yet, or the server is draining");
  }
  if (path == "/debug/fleet" && content.fleet) return {.body = content.fleet()};
  if (path == "/debug/decisions") {
    if (content.decisions) return {.body = content.decisions()};
    return Text(404, "decisions are not kept: start with --debug-decisions N to see the last N here");
  }
  if (path == "/debug/pprof" || path.starts_with("/debug/pprof/")) {
    return Text(
        404, "there are no pprof pages: take a profile of the running process with `perf record -g -p PID`");
  }
  if (path == "/") return Text(200, std::string(kPages));
  return Text(404, "no such page; " + std::string(kPages));
}

base::Result<std::unique_ptr<AdminServer>> AdminServer::Listen(const Options& options, Content content,
                                                               net::Loop& loop, const base::Log& log) {
  FAIRWAY_CHECK(content.registry != nullptr);
  net::HttpServerOptions http;
  http.host = options.host;
  http.port = options.port;
  http.max_body = 64u << 10;
  http.max_connections = 256;
  auto server = net::HttpServer::Listen(
      std::move(http), loop,
      [content = std::move(content)](const net::HttpRequest& request,
                                     const std::shared_ptr<net::HttpResponder>& responder) {
        responder->Send(Answer(request, content));
      },
      log);
  if (!server) return tl::make_unexpected(server.error());
  return std::unique_ptr<AdminServer>(new AdminServer(std::move(*server)));
}

}  // namespace fairway::admin
