// A certified OAuth server, and beside it a small API that its access tokens open.
//
// One JSON argument: { cert, key, accessTokenSeconds, scopes, clients: [...] }. Prints one JSON line with its
// issuer once it listens, and one line for each thing that happens afterwards, so that a test
// can read from the other side what reached it.
import https from 'node:https';
import { readFileSync } from 'node:fs';
import { Provider } from 'oidc-provider';

const settings = JSON.parse(process.argv[2]);
const say = (event) => process.stdout.write(`${JSON.stringify(event)}\n`);
const server = https.createServer({ cert: readFileSync(settings.cert), key: readFileSync(settings.key) });
await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
const issuer = `https://127.0.0.1:${server.address().port}`;

const provider = new Provider(issuer, {
  clients: settings.clients,
  scopes: ['openid', 'offline_access', ...settings.scopes],
  pkce: { required: () => true },
  cookies: { keys: ['only for tests'] },
  ttl: {
    AccessToken: settings.accessTokenSeconds,
    AuthorizationCode: 60,
    DeviceCode: 60,
    Grant: 3600,
    Interaction: 600,
    RefreshToken: 3600,
    Session: 3600,
  },
  rotateRefreshToken: true,
  issueRefreshToken: async () => true,
  features: {
    devInteractions: { enabled: true },
    deviceFlow: { enabled: true },
    revocation: { enabled: true },
    userinfo: { enabled: false },
  },
  findAccount: async (_ctx, id) => ({ accountId: id, claims: async () => ({ sub: id }) }),
});
for (const name of ['grant.success', 'grant.error', 'grant.revoked', 'authorization.success']) {
  provider.on(name, (ctx, error) => {
    const body = ctx?.oidc?.params ?? {};
    say({ event: name, type: body.grant_type, error: error?.error });
  });
}

async function api(request, response) {
  const token = (request.headers.authorization ?? '').replace(/^Bearer /, '');
  const found = token ? await provider.AccessToken.find(token) : undefined;
  const good = found !== undefined && !found.isExpired;
  say({ event: 'api', path: request.url, status: good ? 200 : 401 });
  response.writeHead(good ? 200 : 401, { 'content-type': 'application/json' });
  response.end(JSON.stringify(good ? { user: found.accountId } : {}));
}

const callback = provider.callback();
server.on('request', (request, response) => {
  if (request.url.startsWith('/api/')) {
    api(request, response);
    return;
  }
  say({ event: 'request', method: request.method, path: request.url.split('?')[0] });
  if (request.url.startsWith('/silent/')) return;
  if (request.url.startsWith('/slow/')) {
    setTimeout(() => {
      request.url = request.url.replace('/slow/', '/token/');
      server.emit('request', request, response);
    }, 1000);
    return;
  }
  callback(request, response);
});
say({ event: 'listening', issuer });
process.stdin.on('end', () => process.exit(0)).resume();
