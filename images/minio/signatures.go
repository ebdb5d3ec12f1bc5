// SPDX-License-Identifier: AGPL-3.0-or-later
//
// labd's own file in MinIO's package `cmd`. MinIO's repository is archived, and its last commit takes uploads in the
// "unsigned trailer" encoding whose signature it has not looked at: handlers either do not check signatures of that encoding at
// all (archives that are unpacked: CVE-2026-40344), or check it only where an Authorization header is there, while the access
// key is also taken from the query (CVE-2026-41145).
//
// Here every such upload shows a valid signature in its header before any handler sees it. There is no lawful one that
// this refuses: SDKs sign this encoding in the header, and the lab has no bucket that is open to everybody.

package cmd

import (
	"net/http"
	"strings"

	xhttp "github.com/minio/minio/internal/http"
)

func init() {
	globalMiddlewares = append(globalMiddlewares, checkSignatures)
}

// checkSignatures refuses what claims an access key without having shown that it knows the secret.
func checkSignatures(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if code := signatureTrouble(r); code != ErrNone {
			writeErrorResponse(r.Context(), w, errorCodes.ToAPIErr(code), r.URL)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// signatureTrouble is why a request is refused, or ErrNone. Others than those above are the handlers' to check; one with two
// access keys, in the header and in the query, does not come here, as MinIO refuses it before.
func signatureTrouble(r *http.Request) APIErrorCode {
	// Also reads the query into r.Form, which the signature is made over.
	if getRequestAuthType(r) != authTypeStreamingUnsignedTrailer {
		return ErrNone
	}
	if !strings.HasPrefix(r.Header.Get(xhttp.Authorization), signV4Algorithm) {
		return ErrAccessDenied
	}
	// Of other encodings MinIO refuses what is old; of this one anybody who saw a request could send it again for ever, with
	// another body.
	date, code := parseAmzDateHeader(r)
	if code != ErrNone {
		return code
	}
	if age := UTCNow().Sub(date); age > globalMaxSkewTime || age < -globalMaxSkewTime {
		return ErrRequestTimeTooSkewed
	}
	return doesSignatureMatch(unsignedPayloadTrailer, r, globalSite.Region(), serviceS3)
}
