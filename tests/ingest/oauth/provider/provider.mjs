// A certified OAuth server, and beside it a small API that its access tokens open.
//
// One JSON argument: { cert, key, accessTokenSeconds, scopes, clients: [...], github, pkce }. With `github` (paths to
// texts) its addresses and its API are those of a GitHub Enterprise server with one repository. Prints one JSON line with its
// issuer once it listens, and one line for each thing that happens afterwards, so that a test
// can read from the other side what reached it.
import { createHash } from 'node:crypto';
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
  pkce: { required: () => settings.pkce },
  cookies: { keys: ['only for tests'] },
  routes: settings.github
    ? { authorization: '/login/oauth/authorize', token: '/login/oauth/access_token' }
    : {},
  ttl: {
    AccessToken: Math.max(settings.accessTokenSeconds, 60),
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

provider.use(async (ctx, next) => {
  await next();
  if (ctx.body?.access_token) {
    // A token may say that it is old before it is: whoever comes late with one that was just given is not refused.
    ctx.body.expires_in = settings.accessTokenSeconds;
    say({ event: 'tokens', access_token: ctx.body.access_token, refresh_token: ctx.body.refresh_token });
  }
  // GitHub says what it granted; this server says nothing of scopes that are not OpenID's.
  if (settings.github && ctx.path.endsWith('/access_token') && ctx.body?.access_token) ctx.body.scope = 'repo';
});

async function api(request, response) {
  const token = (request.headers.authorization ?? '').replace(/^Bearer /, '');
  const found = token ? await provider.AccessToken.find(token) : undefined;
  const good = found !== undefined && !found.isExpired;
  say({ event: 'api', path: request.url, status: good ? 200 : 401 });
  response.writeHead(good ? 200 : 401, { 'content-type': 'application/json' });
  response.end(JSON.stringify(good ? { user: found.accountId } : {}));
}

const hash = (text) => createHash('sha1').update(text).digest('hex');

// What docs.github.com/en/rest says of a public repository without issues, and of revoking a token.
const github = {
  'GET ': () => ({ full_name: 'acme/handbook', private: false, visibility: 'public', default_branch: 'main' }),
  'GET /issues': () => [],
  'GET /commits/main': () => ({ sha: hash(JSON.stringify(settings.github)) }),
  'GET /git/trees': (sha) => ({
    sha,
    truncated: false,
    tree: Object.entries(settings.github).map(([path, text]) => ({
      path, type: 'blob', mode: '100644', sha: hash(text), size: text.length,
    })),
  }),
};

async function enterprise(request, response) {
  let body = '';
  for await (const part of request) body += part;
  const path = request.url.split('?')[0];
  const answer = (status, content = '') => {
    say({ event: 'api', method: request.method, path, status });
    response.writeHead(status, { 'content-type': 'application/json' });
    response.end(typeof content === 'string' ? content : JSON.stringify(content));
  };
  if (request.method === 'DELETE') {
    const found = await provider.AccessToken.find(JSON.parse(body).access_token);
    await found?.destroy();
    return answer(found ? 204 : 404);
  }
  const token = (request.headers.authorization ?? '').replace(/^Bearer /, '');
  const found = token ? await provider.AccessToken.find(token) : undefined;
  if (found === undefined || found.isExpired) return answer(401);
  const [, what = '', last = ''] = /^\/api\/v3\/repos\/acme\/handbook(\/.*?)?(?:\/([0-9a-f]{40}))?$/.exec(path) ?? [];
  if (what === '/git/blobs') return answer(200, Object.values(settings.github).find((text) => hash(text) === last));
  const known = github[`GET ${what}`];
  return known ? answer(200, known(last)) : answer(404);
}

const callback = provider.callback();
server.on('request', (request, response) => {
  if (settings.github && request.url.startsWith('/api/v3/')) {
    enterprise(request, response);
    return;
  }
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
