# A static binary on an empty image.
FROM golang:1.26 AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
RUN scripts/build.sh /eventsource

FROM scratch
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
COPY --from=build /eventsource /eventsource
ENV EVENTSOURCE_HOST=0.0.0.0
EXPOSE 8080
USER 65532:65532
HEALTHCHECK --interval=10s --timeout=3s CMD ["/eventsource", "healthcheck"]
ENTRYPOINT ["/eventsource"]
