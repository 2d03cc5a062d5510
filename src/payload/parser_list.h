// The reference's parsers, a line each: name here, and the type as configs say it. Which paths each one takes is
// the table in api.cc.
PARSER(kOpenai, "openai-parser")
PARSER(kAnthropic, "anthropic-parser")
PARSER(kVllmHttp, "vllmhttp-parser")
PARSER(kSglangHttp, "sglanghttp-parser")
PARSER(kVllmGrpc, "vllmgrpc-parser")
PARSER(kVertexAi, "vertexai-parser")
PARSER(kPassthrough, "passthrough-parser")
